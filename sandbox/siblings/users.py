"""The User Service: who may order. HTTP only."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from flask import Flask
from flask.typing import ResponseReturnValue
from pydantic import AliasChoices, BaseModel, Field

from sandbox.siblings.http import db_path, found, json_app, read_body, serve
from sandbox.siblings.kit import connect, create, transaction

#: User 1 exists from the start, so that a first order needs no preparation.
SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, payment_status TEXT NOT NULL DEFAULT 'unpaid'
);
INSERT OR IGNORE INTO users (id, name) VALUES (1, 'Budi Santoso');
"""
UNKNOWN_USER = "Pengguna tidak ditemukan."
#: The limit keeps the id within what SQLite can hold.
USER = "/users/<int(max=2147483647):user_id>"


class NewUser(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]


class PaymentStatus(BaseModel):
    status: Literal["pending", "paid", "failed"] = Field(validation_alias=AliasChoices("payment_status", "status"))


def create_app(database: Path) -> Flask:
    create(database, SCHEMA)
    app = json_app("user-service")

    @app.get("/users")
    def list_users() -> ResponseReturnValue:
        with closing(connect(database)) as db:
            return [dict(row) for row in db.execute("SELECT * FROM users ORDER BY id")]

    @app.post("/users")
    def add_user() -> ResponseReturnValue:
        name = read_body(NewUser).name
        with closing(connect(database)) as db, transaction(db):
            return dict(db.execute("INSERT INTO users (name) VALUES (?) RETURNING *", [name]).fetchone()), 201

    @app.get(USER)
    def show_user(user_id: int) -> ResponseReturnValue:
        with closing(connect(database)) as db:
            return dict(found(db.execute("SELECT * FROM users WHERE id = ?", [user_id]).fetchone(), UNKNOWN_USER))

    @app.put(f"{USER}/payment-status")
    def update_payment_status(user_id: int) -> ResponseReturnValue:
        status = read_body(PaymentStatus).status
        update = "UPDATE users SET payment_status = ? WHERE id = ? RETURNING *"
        with closing(connect(database)) as db, transaction(db):
            return dict(found(db.execute(update, [status, user_id]).fetchone(), UNKNOWN_USER))

    return app


def main() -> None:
    database = db_path("users.db")
    app = create_app(database)
    # Kept open: SQLite checkpoints its write-ahead log when the last connection closes, here after every request.
    with closing(connect(database)):
        serve(app, "USERS_PORT", 5001)
