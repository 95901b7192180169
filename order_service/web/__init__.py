"""The HTTP API: the table of routes, their endpoints, and the documents made from it."""
