"""What the peers have in common: the statements, the model of a POST and, where there is a choice, Flask and psycopg.

This package and those of the peers lie on a path of their own, so that a peer's processes load nothing of the harness.
"""
