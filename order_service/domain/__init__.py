"""The domain: an order and the decision table. Standard library only, no I/O, no clock."""
