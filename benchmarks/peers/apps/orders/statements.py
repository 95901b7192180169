"""The SQL of all peers. asyncpg and psycopg's raw cursor both take it as it stands, and both prepare it."""

#: Alone in its transaction.
PLACE = "INSERT INTO orders (user_id, menu_ids) VALUES ($1, $2) RETURNING id"
#: Inserts nothing when the message was applied before.
REMEMBER = "INSERT INTO inbox (message_id) VALUES ($1) ON CONFLICT DO NOTHING"
#: Changes nothing unless the order still waits for the menu.
RESERVE = """
UPDATE orders SET state = 'awaiting_payment', items = $2, total_price = $3 WHERE id = $1 AND state = 'awaiting_menu'
"""
#: Changes nothing unless the order still waits for this amount.
PAY = """
UPDATE orders SET state = 'paid', payment_id = $2, paid_at = clock_timestamp()
WHERE id = $1 AND state = 'awaiting_payment' AND total_price = $3
"""
