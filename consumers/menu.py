"""What we hear from the Menu Service."""

from consumers.worker import Subscription
from order_service.contract import topology

SUBSCRIPTION = Subscription(topology.MENU, accepts=frozenset({"MenuReserved", "MenuRejected", "StockReleased"}))
