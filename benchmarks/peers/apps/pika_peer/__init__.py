"""Plain pika, as RabbitMQ's own tutorials use it: a blocking consumer, and an ack when the work is done."""
