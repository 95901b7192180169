"""Bulk writes: all rows of a batch, of several tables, in one statement and so in one round trip.

PostgreSQL receives the rows of a table as one JSON parameter and unpacks it itself; SQLite, which has no round trips,
receives them one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.dialects import postgresql, sqlite

#: The values of columns by name; all rows of a call name the same columns.
Row = Mapping[str, Any]
Columns = tuple[sa.Column[Any], ...]
#: The primary key by which an update finds its rows.
KEY = "id"

_POSTGRESQL: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
_SQLITE: sa.Dialect = sqlite.dialect()


@dataclass(frozen=True, slots=True)
class Insert:
    """New rows of a table."""

    table: sa.Table
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Update:
    """New values of existing rows; the column `id` of each names the row."""

    table: sa.Table
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Take:
    """Which due rows to process: at most `limit` of them without some, or only one; those due for longest first."""

    limit: int
    without: Sequence[Any] = ()
    only: Any = None

    def due(self, connection: sa.Connection, table: sa.Table, now: datetime) -> list[sa.ColumnElement[bool]]:
        """The conditions for a table with the columns `id` and `due_at`."""
        conditions = [table.c.due_at <= now]
        if self.without:
            conditions.append(sa.not_(among(connection, table.c.id, self.without)))
        if self.only is not None:
            conditions.append(table.c.id == self.only)
        return conditions


def write(connection: sa.Connection, *parts: Insert | Update) -> None:
    """Write all parts, on PostgreSQL in a single statement: no two of them may concern the same table."""
    parts = tuple(part for part in parts if part.rows)
    if connection.dialect.name == "sqlite":
        for part in parts:
            columns = _columns(part)
            statement = _sqlite_insert if isinstance(part, Insert) else _sqlite_update
            connection.exec_driver_sql(statement(part.table, columns), _bound(columns, part.rows))
    elif parts:
        shapes = tuple((type(part), part.table, _columns(part)) for part in parts)
        json = tuple(_as_json(columns, part.rows) for (_, _, columns), part in zip(shapes, parts, strict=True))
        connection.exec_driver_sql(_postgresql_write(shapes), json)


def insert_returning(connection: sa.Connection, table: sa.Table, rows: Sequence[Row], returning: str) -> list[Any]:
    """Insert rows; return the named columns of each, in any order and as the driver decodes them."""
    columns = _columns(Insert(table, rows))
    if connection.dialect.name == "sqlite":
        statement = f"{_sqlite_insert(table, columns)} RETURNING {returning}"
        return [connection.exec_driver_sql(statement, values).one() for values in _bound(columns, rows)]
    statement = f"{_postgresql_insert(table, columns)} RETURNING {returning}"
    return list(connection.exec_driver_sql(statement, (_as_json(columns, rows),)))


def find(
    connection: sa.Connection, columns: Columns, keys: Sequence[tuple[Any, ...]], *, value: sa.Column[Any]
) -> dict[Any, Any]:
    """The keys among these that a table holds in these columns, each with a value of its row.

    Fast if a unique index consists of the columns.
    """
    if connection.dialect.name == "sqlite":
        found = connection.execute(sa.select(*columns, value).where(sa.tuple_(*columns).in_(keys)))
    else:
        # Plain str: to_json() takes twenty times as long with SQLAlchemy's quoted_name as keys.
        names = [str(column.name) for column in columns]
        rows = [dict(zip(names, key, strict=True)) for key in keys]
        found = connection.exec_driver_sql(_postgresql_find(columns, value), (_as_json(columns, rows),))
    return {tuple(key): found_value for *key, found_value in found}


def among(connection: sa.Connection, column: sa.ColumnElement[Any], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """`column IN values`; on PostgreSQL as one array, so that the statement text is always the same."""
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == sa.any_(sa.literal(values, postgresql.ARRAY(column.type)))


def _columns(part: Insert | Update) -> Columns:
    """The columns of a part in the order of its statement: an update binds its key last."""
    names = tuple(part.rows[0])
    return _named(part.table, names if isinstance(part, Insert) else (*(name for name in names if name != KEY), KEY))


@cache
def _named(table: sa.Table, names: tuple[str, ...]) -> Columns:
    return tuple(table.c[name] for name in names)


def _as_json(columns: Columns, rows: Sequence[Row]) -> str:
    # to_json() writes bytes as digits itself, at three times the cost.
    for name in _binary(columns):
        rows = [{**row, name: row[name].hex()} for row in rows]
    return to_json(rows).decode()


@cache
def _binary(columns: Columns) -> tuple[str, ...]:
    return tuple(str(column.name) for column in columns if _is_binary(column))


@cache
def _postgresql_write(shapes: tuple[tuple[type[Insert | Update], sa.Table, Columns], ...]) -> str:
    *others, last = (
        (_postgresql_insert if kind is Insert else _postgresql_update)(table, columns)
        for kind, table, columns in shapes
    )
    named = ", ".join(f"part{number} AS ({statement})" for number, statement in enumerate(others))
    return f"WITH {named} {last}" if others else last


@cache
def _postgresql_insert(table: sa.Table, columns: Columns) -> str:
    values = ", ".join(f"decode({c.name}, 'hex')" if _is_binary(c) else c.name for c in columns)
    return f"INSERT INTO {table.name} ({_names(columns)}) SELECT {values} FROM {_recordset(columns)}"  # noqa: S608


@cache
def _postgresql_update(table: sa.Table, columns: Columns) -> str:
    sets = ", ".join(f"{column.name} = new.{column.name}" for column in columns if column.name != KEY)
    return f"UPDATE {table.name} SET {sets} FROM {_recordset(columns)} WHERE {table.name}.{KEY} = new.{KEY}"  # noqa: S608


@cache
def _postgresql_find(columns: Columns, value: sa.Column[Any]) -> str:
    names, table = _names(columns), value.table
    return f"SELECT {names}, {value.name} FROM {table} JOIN {_recordset(columns)} USING ({names})"  # noqa: S608


def _recordset(columns: Columns) -> str:
    typed = ", ".join(f"{c.name} {'text' if _is_binary(c) else c.type.compile(_POSTGRESQL)}" for c in columns)
    return f"json_to_recordset(%s) AS new ({typed})"


def _is_binary(column: sa.Column[Any]) -> bool:
    """Whether values are sent as hexadecimal digits, because JSON has no bytes."""
    return isinstance(column.type, sa.LargeBinary)


def _bound(columns: Columns, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    binds = _binds(columns)
    return [tuple(bind(row[name]) if bind else row[name] for name, bind in binds) for row in rows]


@cache
def _sqlite_insert(table: sa.Table, columns: Columns) -> str:
    places = ", ".join("?" * len(columns))
    return f"INSERT INTO {table.name} ({_names(columns)}) VALUES ({places})"  # noqa: S608 - our names


@cache
def _sqlite_update(table: sa.Table, columns: Columns) -> str:
    sets = ", ".join(f"{column.name} = ?" for column in columns if column.name != KEY)
    return f"UPDATE {table.name} SET {sets} WHERE {KEY} = ?"  # noqa: S608 - our names


@cache
def _binds(columns: Columns) -> list[tuple[str, Callable[[Any], Any] | None]]:
    """The functions by which SQLAlchemy converts the values of these columns for SQLite, where it does."""
    return [(column.name, column.type.dialect_impl(_SQLITE).bind_processor(_SQLITE)) for column in columns]


def _names(columns: Columns) -> str:
    return ", ".join(column.name for column in columns)
