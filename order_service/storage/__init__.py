"""The database: tables, transactions, and the SQL (but for the progress of reservations in consumers/menu_http)."""
