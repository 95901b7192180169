"""The User Service: who may order. HTTP only; run it with `python -m sandbox.users`."""

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from flask import Flask
from flask.typing import ResponseReturnValue
from pydantic import AliasChoices, BaseModel, Field
from werkzeug.exceptions import NotFound

from sandbox.siblings.process import Settings, json_app, read_body, serve
from sandbox.siblings.store import connect, create, transaction

#: User 1 is there from the start, so that a first order needs no preparation.
SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, payment_status TEXT NOT NULL DEFAULT 'unpaid'
);
INSERT OR IGNORE INTO users (id, name) VALUES (1, 'Budi Santoso');
"""
UNKNOWN_USER = "Pengguna tidak ditemukan."
#: A user's id in a path; SQLite cannot hold what is much longer.
USER = "/users/<int(max=2147483647):user_id>"


class NewUser(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]


class PaymentStatus(BaseModel):
    """The teams write the field either way."""

    status: Annotated[
        Literal["pending", "paid", "failed"], Field(validation_alias=AliasChoices("payment_status", "status"))
    ]


def create_app(database: Path) -> Flask:
    """The service's HTTP side. A connection per request, as each runs in a thread of its own."""
    app = json_app("user-service")

    @app.get("/users")
    def list_users() -> ResponseReturnValue:
        with closing(connect(database)) as db:
            return [dict(row) for row in db.execute("SELECT * FROM users ORDER BY id")]

    @app.post("/users")
    def add_user() -> ResponseReturnValue:
        name = read_body(NewUser).name
        insert = "INSERT INTO users (name) VALUES (?) RETURNING *"
        with closing(connect(database)) as db, transaction(db):
            return dict(db.execute(insert, (name,)).fetchone()), 201

    @app.get(USER)
    def show_user(user_id: int) -> ResponseReturnValue:
        with closing(connect(database)) as db:
            row = db.execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
        if row is None:
            raise NotFound(UNKNOWN_USER)
        return dict(row)

    @app.put(f"{USER}/payment-status")
    def update_payment_status(user_id: int) -> ResponseReturnValue:
        status = read_body(PaymentStatus).status
        update = "UPDATE users SET payment_status = ? WHERE id = ? RETURNING *"
        with closing(connect(database)) as db, transaction(db):
            row = db.execute(update, (status, user_id)).fetchone()
        if row is None:
            raise NotFound(UNKNOWN_USER)
        return dict(row)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings.read(os.environ, port_name="USERS_PORT", default_port=5001)
    database = settings.directory / "users.db"
    create(database, SCHEMA)
    # Kept open: SQLite tidies its log away whenever the last connection closes, here after each request.
    with closing(connect(database)):
        serve(settings, create_app(database))
