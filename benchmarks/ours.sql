-- name: insert_awaiting_menu
insert into orders (key, user_id, menu_ids, created_at, state, version, ledger, due_at, reminders_left)
select gen_random_uuid(), 1, '[1, 2]', now(), 'awaiting_menu', 1,
       '{"reservations": [], "payments": [], "released": [], "refunded": []}', now() + interval '15 minutes', 3
from generate_series(1, %s)

-- name: insert_awaiting_payment
insert into orders (key, user_id, menu_ids, created_at, state, version, items, total_price, ledger, due_at,
                    reminders_left)
select gen_random_uuid(), 1, '[1, 2]', now(), 'awaiting_payment', 2, %s, 38000,
       '{"reservations": ["R1"], "payments": [], "released": [], "refunded": []}', now() + interval '15 minutes', 3
from generate_series(1, %s)

-- name: insert_paid
-- Paid orders as the service stores them, each with two history rows; OrderPlaced is derived from the order's row.
with paid as (
    insert into orders (key, user_id, menu_ids, created_at, state, version, items, total_price, ledger, paid_at,
                        reminders_left)
    select gen_random_uuid(), 1 + n %% 100000, '[1, 2]', now() - n * interval '1 second', 'paid', 3, %s, 38000,
           '{"reservations": ["R1"], "payments": [["1", "38000.0000"]], "released": [], "refunded": []}',
           now() - n * interval '1 second', 3
    from generate_series(1, %s) as n
    returning id, created_at
)
insert into order_history (order_id, at, type, from_state, to_state, message_id)
select id, created_at, type, from_state, to_state, gen_random_uuid()::text
from paid cross join (values
    ('MenuReserved', 'awaiting_menu', 'awaiting_payment'),
    ('PaymentCompleted', 'awaiting_payment', 'paid')
) as entry (type, from_state, to_state)

-- name: insert_outbox_rows
insert into outbox (order_id, type, message_id, exchange, routing_key, body, created_at, due_at)
select n, 'OrderCreated', gen_random_uuid()::text, 'restaurant.events', 'order.created', convert_to(
    '{"specversion":"1.0","id":"' || gen_random_uuid() || '","source":"/order-service","type":"OrderCreated",'
    || '"subject":"' || n || '","data":{"order_id":' || n || ',"user_id":1,"menu_ids":[1,2],"lines":['
    || '{"menu_id":1,"quantity":1},{"menu_id":2,"quantity":1}],'
    || '"created_at":"2025-03-01T12:00:00Z","reply_by":"2025-03-01T12:02:00Z"}}', 'UTF8'),
    now(), now()
from generate_series(1, %s) as n
