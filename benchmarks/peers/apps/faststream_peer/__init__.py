"""FastStream with asyncpg: handlers of plain JSON events in one event loop, and FastAPI for the POST."""
