"""Use the Python client that openapi-python-client has generated here: python use.py URL ID_OF_A_PAID_ORDER"""

import sys
from concurrent.futures import ThreadPoolExecutor

from generated import Client
from generated.api.orders import cancel_order, get_history, get_order, place_order, stream_order
from generated.models import History, Order, OrderRequest, ProblemDetails

client, paid_id = Client(base_url=sys.argv[1], timeout=30), int(sys.argv[2])

placed = place_order.sync(
    client=client, body=OrderRequest(user_id=1, menu_ids=[1, 2], expected_total=38000.5), prefer="respond-async"
)
assert isinstance(placed, Order)
assert (placed.status, placed.total_price) == ("pending", None)

with ThreadPoolExecutor() as pool:
    stream = pool.submit(stream_order.sync, placed.id, client=client)
    cancelled = cancel_order.sync(placed.id, client=client)
assert isinstance(cancelled, Order)
assert cancelled.status == "cancelled"
events = stream.result()
assert isinstance(events, str)
assert '"status": "cancelled"' in events

paid, history = get_order.sync(paid_id, client=client), get_history.sync(paid_id, client=client)
assert isinstance(paid, Order)
assert isinstance(history, History)
assert (paid.status, history.events[-1].to) == ("paid", "paid")

problem = cancel_order.sync(paid_id, client=client, accept_language="en")
assert isinstance(problem, ProblemDetails)
assert (problem.status, problem.code, problem.detail) == (409, "order_paid", "The order is already paid.")
newer = ProblemDetails.from_dict(problem.to_dict() | {"code": "newer_than_this_client"})
assert newer.code == "newer_than_this_client"
