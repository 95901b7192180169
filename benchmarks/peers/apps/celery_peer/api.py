"""The API: Flask, and Celery's pool of producers."""

from flask import Flask

from celery_peer.tasks import publish
from orders.web import create_app


def app() -> Flask:
    return create_app(publish)
