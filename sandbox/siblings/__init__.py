"""What the sandbox's User, Menu and Payment services have in common.

    RabbitMQ -> consumer -> one transaction: facts + outbox -> ack
    HTTP     ->             one transaction: facts + outbox -> answer
                            outbox -> relay -> confirmed publish -> row gone

`store` keeps the file, `events` the wire format and the outbox, `consumer` and `relay` the two ways of the
broker over what they share in `link`, `process` what makes a process of it. Written from the event contract
alone, as another team would: nothing here comes from the Order Service.
"""
