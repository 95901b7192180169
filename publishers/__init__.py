"""The relay, which publishes the outbox, and the deadlines: reminders, expiry and repeated compensations."""
