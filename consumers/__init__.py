"""Messages from the broker: received in batches, applied in one transaction each, acked after the commit."""
