-- name: tables
create table orders (
    id bigint generated always as identity primary key, user_id int not null, menu_ids text not null,
    state text not null, items text, total_price numeric(15, 4),
    created_at timestamptz not null default clock_timestamp(), paid_at timestamptz
) with (fillfactor = 70);
create table inbox (message_id text primary key);
create table outbox (
    id bigint generated always as identity primary key, message_id uuid not null default gen_random_uuid(),
    routing_key text not null, body bytea not null
);

-- name: place
-- Order and outbox row. The body of the event is built here, where the id of the order is known.
with placed as (
    insert into orders (user_id, menu_ids, state) values (%s, %s, 'awaiting_menu') returning id, menu_ids
)
insert into outbox (routing_key, body)
select 'order.created', convert_to('{"order_id":' || id || ',"menu_ids":' || menu_ids || '}', 'UTF8') from placed
returning (select id from placed)

-- name: claim
delete from outbox where id = any (array (select id from outbox order by id limit %s for update skip locked))
returning id, routing_key, message_id::text, body

-- name: reserve
with fresh as (
    insert into inbox select unnest(%(message_ids)s::text[]) on conflict do nothing returning message_id
), changed as (
    update orders set state = 'awaiting_payment', items = reply.items, total_price = reply.total
    from unnest(%(message_ids)s::text[], %(order_ids)s::bigint[], %(items)s::text[], %(totals)s::numeric[])
        as reply (message_id, order_id, items, total) join fresh using (message_id)
    where orders.id = reply.order_id and state = 'awaiting_menu' returning id, total_price
)
insert into outbox (routing_key, body) select 'payment.requested',
    convert_to('{"order_id":' || id || ',"amount":' || trim_scale(total_price) || '}', 'UTF8') from changed

-- name: complete
with fresh as (
    insert into inbox select unnest(%(message_ids)s::text[]) on conflict do nothing returning message_id
), changed as (
    update orders set state = 'paid', paid_at = clock_timestamp()
    from unnest(%(message_ids)s::text[], %(order_ids)s::bigint[]) as reply (message_id, order_id)
        join fresh using (message_id)
    where orders.id = reply.order_id and state = 'awaiting_payment' returning id
)
insert into outbox (routing_key, body)
select 'order.paid', convert_to('{"order_id":' || id || '}', 'UTF8') from changed
