"""What we hear from the Menu Service."""

from consumers.worker import Subscription
from order_service import topology

SUBSCRIPTION = Subscription(topology.MENU, accepts=frozenset({"MenuReserved", "MenuRejected", "StockReleased"}))
