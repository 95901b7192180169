"""Find RabbitMQ and PostgreSQL on this machine, or start them."""
