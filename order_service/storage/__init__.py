"""The database: tables, transactions, and all SQL."""
