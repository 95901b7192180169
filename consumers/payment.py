"""What we hear from the Payment Service."""

from consumers.worker import Subscription
from order_service.contract import topology

SUBSCRIPTION = Subscription(
    topology.PAYMENT, accepts=frozenset({"PaymentCompleted", "PaymentFailed", "PaymentRefunded"})
)
