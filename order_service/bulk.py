"""Many rows in one statement: what a batch writes costs one round trip a table, however many rows it has.

PostgreSQL gets the rows as one JSON parameter, which it takes apart itself; SQLite, which has no round trips, gets
them one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.dialects import postgresql, sqlite

#: The values of columns by name; all rows of a call name the same columns.
Row = Mapping[str, Any]
Columns = tuple[sa.Column[Any], ...]

_POSTGRESQL: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
_SQLITE: sa.Dialect = sqlite.dialect()


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row], *, returning: str = "") -> list[Any]:
    """Insert these rows; gives back these columns of each, in any order and as the driver reads them."""
    if not rows:
        return []
    columns = tuple(table.c[name] for name in rows[0])
    if connection.dialect.name == "sqlite":
        return _one_by_one(connection, _sqlite_insert(table, columns, returning), columns, rows)
    result = _as_json(connection, _postgresql_insert(table, columns, returning), rows)
    return list(result) if returning else []


def update(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Set the other columns of the rows that have these ids; `id` is the last column of each."""
    if not rows:
        return
    columns = tuple(table.c[name] for name in rows[0])
    if connection.dialect.name == "sqlite":
        _one_by_one(connection, _sqlite_update(table, columns), columns, rows)
    else:
        _as_json(connection, _postgresql_update(table, columns), rows)


def present(connection: sa.Connection, columns: Columns, keys: Sequence[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Those of these keys that a table has in these columns; quick where an index begins with them."""
    if connection.dialect.name == "sqlite":
        found = connection.execute(sa.select(*columns).where(sa.tuple_(*columns).in_(keys)))
    else:
        rows = [{column.name: value for column, value in zip(columns, key, strict=True)} for key in keys]
        found = _as_json(connection, _postgresql_present(columns), rows)
    return {tuple(row) for row in found}


def among(connection: sa.Connection, column: sa.ColumnElement[Any], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """`column IN values`; as one array where the database has arrays, so that it is always the same statement."""
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == sa.any_(sa.literal(values, postgresql.ARRAY(column.type)))


def _as_json(connection: sa.Connection, statement: str, rows: Sequence[Row]) -> sa.CursorResult[Any]:
    return connection.exec_driver_sql(statement, (to_json(rows, bytes_mode="hex").decode(),))


@cache
def _postgresql_insert(table: sa.Table, columns: Columns, returning: str) -> str:
    values = ", ".join(f"decode({c.name}, 'hex')" if _is_binary(c) else c.name for c in columns)
    insert = f"INSERT INTO {table.name} ({_names(columns)}) SELECT {values} FROM {_recordset(columns)}"  # noqa: S608
    return f"{insert} RETURNING {returning}" if returning else insert


@cache
def _postgresql_update(table: sa.Table, columns: Columns) -> str:
    sets = ", ".join(f"{column.name} = new.{column.name}" for column in columns[:-1])
    return f"UPDATE {table.name} SET {sets} FROM {_recordset(columns)} WHERE {table.name}.id = new.id"  # noqa: S608


@cache
def _postgresql_present(columns: Columns) -> str:
    names, table = _names(columns), columns[0].table
    return f"SELECT {names} FROM {table} JOIN {_recordset(columns)} USING ({names})"  # noqa: S608 - our names


def _recordset(columns: Columns) -> str:
    typed = ", ".join(f"{c.name} {'text' if _is_binary(c) else c.type.compile(_POSTGRESQL)}" for c in columns)
    return f"json_to_recordset(%s) AS new ({typed})"


def _is_binary(column: sa.Column[Any]) -> bool:
    """JSON has no bytes: they travel as hexadecimal digits."""
    return isinstance(column.type, sa.LargeBinary)


def _one_by_one(connection: sa.Connection, statement: str, columns: Columns, rows: Sequence[Row]) -> list[Any]:
    binds = _binds(columns)
    values = [tuple(bind(row[name]) for name, bind in binds) for row in rows]
    if "RETURNING" in statement:
        return [connection.exec_driver_sql(statement, each).one() for each in values]
    connection.exec_driver_sql(statement, values)
    return []


@cache
def _sqlite_insert(table: sa.Table, columns: Columns, returning: str) -> str:
    places = ", ".join("?" * len(columns))
    insert = f"INSERT INTO {table.name} ({_names(columns)}) VALUES ({places})"  # noqa: S608 - our names
    return f"{insert} RETURNING {returning}" if returning else insert


@cache
def _sqlite_update(table: sa.Table, columns: Columns) -> str:
    sets = ", ".join(f"{column.name} = ?" for column in columns[:-1])
    return f"UPDATE {table.name} SET {sets} WHERE id = ?"  # noqa: S608 - our names


@cache
def _binds(columns: Columns) -> list[tuple[str, Callable[[Any], Any]]]:
    """How SQLAlchemy would write these columns' values."""
    found = ((column.name, column.type.dialect_impl(_SQLITE).bind_processor(_SQLITE)) for column in columns)
    return [(name, bind or _as_it_is) for name, bind in found]


def _as_it_is(value: Any) -> Any:
    return value


def _names(columns: Columns) -> str:
    return ", ".join(column.name for column in columns)
