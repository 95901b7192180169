"""The commands of `python -m order_service`."""
