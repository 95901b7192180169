"""The deployment of the end-to-end tests, with faults injected by the tests."""

from tests.e2e.conftest import database_url, deployment, logins

__all__ = ["database_url", "deployment", "logins"]
