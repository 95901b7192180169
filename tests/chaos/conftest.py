"""The same house as in the end-to-end tests; here it is damaged."""

from tests.e2e.conftest import database_url, house

__all__ = ["database_url", "house"]
