"""The spans of a paid order, which every test of traces expects."""

#: The name of each span's parent; None for the first span, whose parent belongs to the client, if it has one.
TREE = {
    "POST /orders": None,
    "outbox OrderCreated": "POST /orders",
    "publish OrderCreated": "outbox OrderCreated",
    "consume MenuReserved": "publish OrderCreated",
    "decide MenuReserved": "consume MenuReserved",
    "outbox PaymentRequested": "decide MenuReserved",
    "publish PaymentRequested": "outbox PaymentRequested",
    "consume PaymentCompleted": "publish PaymentRequested",
    "decide PaymentCompleted": "consume PaymentCompleted",
    "outbox OrderPaid": "decide PaymentCompleted",
    "publish OrderPaid": "outbox OrderPaid",
}
