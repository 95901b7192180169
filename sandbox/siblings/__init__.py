"""The User, Menu and Payment Services of the sandbox, written from the event contract alone, as other teams would.

RabbitMQ -> handler -> one transaction: rows + outbox -> ack
HTTP     -> route   -> one transaction: rows + outbox -> response
                       outbox -> publish -> confirm -> row deleted
"""
