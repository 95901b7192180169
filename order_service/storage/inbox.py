"""The inbox: which messages were applied already, and how many times a possible poison message was tried.

The inbox has no rows of its own: a message was applied if the history of its order names it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from order_service.storage import bulk
from order_service.storage.tables import order_history, suspects

#: A message with the same order id, type and message id is a repeat. The type is included, because each sibling
#: service may number from 1.
Key = tuple[int, str, str]


def applied(connection: sa.Connection, keys: Sequence[Key]) -> dict[Key, str | None]:
    """The messages among these that were applied before, each with its digest.

    Certain only while their orders are locked. A message applied before digests were stored has None.
    """
    if not keys:
        return {}
    columns = (order_history.c.order_id, order_history.c.type, order_history.c.message_id)
    return bulk.find(connection, columns, keys, value=order_history.c.digest)


def count_attempt(connection: sa.Connection, key: str) -> int:
    """Count one more attempt at a possible poison message, before it is made; return the attempts so far."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    counted = insert(suspects).values(key=key, attempts=1)
    more = {"attempts": suspects.c.attempts + 1}
    upsert = counted.on_conflict_do_update(index_elements=["key"], set_=more).returning(suspects.c.attempts)
    return int(connection.execute(upsert).scalar_one())


def clear_attempts(connection: sa.Connection, key: str) -> None:
    """Delete the attempts at a message that has been processed or dead-lettered."""
    connection.execute(sa.delete(suspects).where(suspects.c.key == key))
