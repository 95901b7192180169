"""What leaves and what time decides: the relay publishes the outbox, the deadlines remind, expire and repeat."""
