"""A consumer that answers OrderCreated for a Menu Service that only speaks HTTP."""
