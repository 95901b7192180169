"""What the processes leave in the databases and the queues."""

import contextlib
import sqlite3
from pathlib import Path

import pika
import sqlalchemy as sa

from order_service.contract.topology import QUEUES
from order_service.storage.tables import orders, outbox


class Records:
    """Reads the service's database, the databases of the sandbox's siblings, and the broker."""

    def __init__(self, amqp_url: str, database_url: str, sibling_directory: Path) -> None:
        self._amqp_url, self._sibling_directory = amqp_url, sibling_directory
        arguments = {} if database_url.startswith("sqlite") else {"client_encoding": "utf8"}
        self._engine = sa.create_engine(database_url, poolclass=sa.NullPool, connect_args=arguments)

    def order_states(self) -> dict[int, str]:
        with self._engine.connect() as connection:
            return {row.id: row.state for row in connection.execute(sa.select(orders.c.id, orders.c.state))}

    def count(self, state: str) -> int:
        return list(self.order_states().values()).count(state)

    def outbox_types(self) -> list[str]:
        """Return the types of the unpublished messages of the service and its siblings."""
        with self._engine.connect() as connection:
            types = [str(type) for type in connection.execute(sa.select(outbox.c.type)).scalars()]
        return types + [row["type"] for name in ("menu", "payment") for row in self.sibling_rows(name, "outbox")]

    def sibling_rows(self, name: str, table: str) -> list[sqlite3.Row]:
        path = self._sibling_directory / f"{name}.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(f"SELECT * FROM {table}").fetchall()

    def queue_depths(self) -> dict[str, int]:
        """Return the number of ready messages of each queue, dead letters included."""
        names = [name for queue in QUEUES for name in (queue.name, queue.dead_letters)]
        names += ["menu-service.orders", "payment-service.orders"]
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._amqp_url))) as connection:
            channel = connection.channel()
            return {name: channel.queue_declare(name, passive=True).method.message_count for name in names}

    def assert_reserved_and_paid_once(self, menu_id: int, *, quantity: int = 2, stock: int = 1_000_000) -> None:
        """Assert that each order has one reservation and one payment of its total, and that the stock agrees."""
        ids = sorted(self.order_states())
        reservations = self.sibling_rows("menu", "orders")
        assert sorted(row["order_id"] for row in reservations) == ids
        assert {(row["answer"], row["released"]) for row in reservations} == {("MenuReserved", 0)}
        [menu] = [row for row in self.sibling_rows("menu", "menus") if row["id"] == menu_id]
        assert menu["stock"] == stock - quantity * len(ids)
        payments = self.sibling_rows("payment", "payments")
        assert sorted(row["order_id"] for row in payments) == ids
        assert {row["status"] for row in payments} == {"paid"}
        assert {float(row["amount"]) for row in payments} == {float(menu["price"]) * quantity}
