"""The id that the next order gets: read it, and raise it."""

import sqlalchemy as sa

from order_service.storage.tables import orders

#: Where SQLite keeps the last id of each table with autoincrement: no row before the first order.
#: https://www.sqlite.org/autoinc.html
_SEQUENCE = sa.table("sqlite_sequence", sa.column("name"), sa.column("seq"))
_IS_OF_ORDERS = _SEQUENCE.c.name == orders.name


def next_id(connection: sa.Connection) -> int:
    """The id that the next order gets, if none is placed in the meantime."""
    if connection.dialect.name == "sqlite":
        last = connection.execute(sa.select(_SEQUENCE.c.seq).where(_IS_OF_ORDERS)).scalar()
        return int(last or 0) + 1
    wanted = sa.text("SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END FROM orders_id_seq")
    return int(connection.execute(wanted).scalar_one())


def start_at(connection: sa.Connection, start: int) -> int:
    """Have the next order get the id `start`, unless its id is already higher; return the id that it gets.

    New orders wait until the transaction ends. May be repeated until the next order is placed.
    """
    if connection.dialect.name != "sqlite":
        # An id that is drawn between reading and setting the sequence would be drawn again.
        connection.execute(sa.text("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE"))
    found = next_id(connection)
    if found >= start:
        return found
    if connection.dialect.name == "sqlite":
        connection.execute(sa.delete(_SEQUENCE).where(_IS_OF_ORDERS))
        connection.execute(sa.insert(_SEQUENCE).values(name=orders.name, seq=start - 1))
    else:
        connection.execute(sa.text("SELECT setval('orders_id_seq', :start, false)"), {"start": start})
    return start
