"""The roles of PostgreSQL: an owner of the tables, and one for each process with the least rights that it needs."""

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import psycopg.sql
import sqlalchemy as sa

from order_service.storage.database import Database
from order_service.storage.facts import WAITING
from order_service.storage.orders import CHANGED
from order_service.storage.tables import compensations, menu_takings, metadata, order_history, orders, outbox, suspects

#: Runs `migrate` and `ids`.
OWNER = "owner"
_CHANGE_ORDERS = f"UPDATE ({', '.join(CHANGED)})"
#: The commands that each role may use on each table; docs/rights.md has the same table.
RIGHTS: dict[str, dict[str, tuple[str, ...]]] = {
    "api": {
        orders.name: ("SELECT", "INSERT", _CHANGE_ORDERS),
        order_history.name: ("SELECT", "INSERT"),
        # `id` finds the oldest message, `order_id` and `type` the orders that are late.
        outbox.name: (f"SELECT ({', '.join(('id', 'order_id', 'type', *WAITING))})", "INSERT"),
        compensations.name: ("SELECT", "INSERT"),
    },
    "consumers": {
        orders.name: ("SELECT", _CHANGE_ORDERS),
        order_history.name: ("SELECT", "INSERT"),
        outbox.name: ("INSERT",),
        compensations.name: ("SELECT", "INSERT", "UPDATE (confirmed_at, due_at)"),
        suspects.name: ("SELECT", "INSERT", "UPDATE (attempts)", "DELETE"),
        menu_takings.name: ("SELECT", "INSERT", "DELETE"),
    },
    "publishers": {
        orders.name: ("SELECT", _CHANGE_ORDERS),
        order_history.name: ("INSERT",),
        outbox.name: ("SELECT", "INSERT", "UPDATE (attempts, due_at, body)", "DELETE"),
        compensations.name: ("SELECT", "INSERT", "UPDATE (attempts, due_at)"),
    },
    "readonly": {table.name: ("SELECT",) for table in metadata.sorted_tables},
}

_SQL = """\
-- The roles of the Order Service, printed by `python -m order_service database roles`. Run this in its database before
-- the first `python -m order_service migrate` and after every one; it may be repeated. The roles get no passwords here.
BEGIN;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[{literals}] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
    -- An administrator who is no superuser needs this to give away what the owner has.
    IF NOT pg_has_role('{owner}', 'USAGE') THEN
        GRANT {owner} TO CURRENT_USER;
    END IF;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO {everyone}', current_database());
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO {everyone};
GRANT CREATE ON SCHEMA public TO {owner};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {readonly};

DO $$
DECLARE
    name text;
BEGIN
    IF to_regclass('public.alembic_version') IS NULL THEN
        RAISE WARNING 'There are no tables yet: run `migrate` as {owner}, and then this again.';
        RETURN;
    END IF;
    FOR name IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'public' AND tablename IN ({tables}) AND tableowner <> '{owner}'
    LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO {owner}', name);
    END LOOP;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {processes};
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {processes};
    GRANT SELECT ON public.alembic_version TO {processes};
{grants}
END $$;

COMMIT;
"""


def sql(prefix: str) -> str:
    """The statements that create the roles `<prefix>_owner`, `<prefix>_api` and so on, and give them their rights."""
    processes = [f"{prefix}_{role}" for role in RIGHTS]
    everyone, owner = [f"{prefix}_{OWNER}", *processes], f"{prefix}_{OWNER}"
    grants = [grant for role in RIGHTS for grant in _grants(role, f"{prefix}_{role}")]
    tables = ["alembic_version", *(table.name for table in metadata.sorted_tables)]
    return _SQL.format(
        literals=_literals(everyone),
        owner=owner,
        everyone=", ".join(everyone),
        processes=", ".join(processes),
        readonly=f"{prefix}_readonly",
        tables=_literals(tables),
        grants="\n".join(f"    {grant};" for grant in grants),
    )


def apply(database: Database, prefix: str, passwords: Mapping[str, str], notice: Callable[[str], None]) -> None:
    """Run the statements of `sql`, and set the passwords of these roles; may be repeated. Tells `notice` all warnings.

    Raises sqlalchemy.exc.DBAPIError, also if the login may not do it.
    """
    pooled = database.engine.raw_connection()
    connection: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
    connection.add_notice_handler(lambda told: notice(f"{told.severity}: {told.message_primary}"))
    try:
        connection.execute(sql(prefix).encode())
        for role, password in passwords.items():
            name = f"{prefix}_{role}"
            # Only the hash, which is all that the server logs and stores.
            hashed = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
            statement = psycopg.sql.SQL("ALTER ROLE {} PASSWORD {}")
            connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Literal(hashed)))
    except psycopg.Error as error:
        raise sa.exc.DBAPIError.instance("database roles", None, error, psycopg.Error) from error
    finally:
        pooled.invalidate()  # it has a notice handler
        pooled.close()


def _grants(role: str, name: str) -> list[str]:
    """The statements that give a role its rights."""
    grants = [f"GRANT {', '.join(commands)} ON public.{table} TO {name}" for table, commands in RIGHTS[role].items()]
    inserted = [metadata.tables[table] for table, commands in RIGHTS[role].items() if "INSERT" in commands]
    if sequences := [f"public.{table.name}_id_seq" for table in inserted if has_sequence(table)]:
        grants.append(f"GRANT USAGE ON SEQUENCE {', '.join(sequences)} TO {name}")
    return grants


def has_sequence(table: sa.Table) -> bool:
    """Whether PostgreSQL gives the ids of the table out."""
    return table.autoincrement_column is not None


def _literals(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
