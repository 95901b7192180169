// Use the types that openapi-typescript has generated here: node use.mjs URL ID_OF_A_PAID_ORDER
import createClient from 'openapi-fetch';
import type { components, paths } from './generated.d.ts';

declare const process: { argv: string[] };

function check(condition: unknown, what: unknown): asserts condition {
  if (!condition) throw new Error(JSON.stringify(what));
}

const [url, paidId] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });

const placed = await client.POST('/orders', {
  params: { header: { Prefer: 'respond-async' } },
  body: { user_id: 1, menu_ids: [1, 2], expected_total: 38000.5 },
});
check(placed.data?.status === 'pending', placed.error);
const total: number | null = placed.data.total_price;
check(total === null, total);

const path = { id: placed.data.id };
const stream = await client.GET('/orders/{id}/events', { params: { path }, parseAs: 'stream' });
check(stream.data, stream.error);
let events = '';
for await (const piece of stream.data.pipeThrough(new TextDecoderStream())) {
  if (!events) {
    const cancelled = await client.DELETE('/orders/{id}', { params: { path } });
    check(cancelled.data?.status === 'cancelled', cancelled.error);
  }
  events += piece;
}
check(events.includes('"status": "cancelled"'), events);

const refused = await client.DELETE('/orders/{id}', {
  params: { path: { id: Number(paidId) }, header: { 'Accept-Language': 'en' } },
});
const problem = refused.error;
check(problem?.code === 'order_paid' && problem.detail === 'The order is already paid.', problem);
// The type of a code must allow those that are newer than this client.
const newer: components['schemas']['ProblemDetails']['code'] = 'newer_than_this_client';
check(newer, problem);
