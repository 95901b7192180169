"""The API: Flask, and the channel that Dramatiq's broker keeps for each thread."""

from flask import Flask

from dramatiq_peer.actors import publish
from orders.web import create_app


def app() -> Flask:
    return create_app(publish)
