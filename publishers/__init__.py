"""From the database to the broker: outbox rows are published and confirmed; what time alone decides is done."""
