// A combined Menu and Payment Service with the CloudEvents SDK: it reads requests, and writes its replies, in the mode
// named by the first argument: structured, binary, or colons (binary, with the headers of the AMQP binding).
// The other arguments are files with events of the Order Service, which the SDK has to read first.
import { readFileSync } from 'node:fs';
import amqp from 'amqplib';
import { CloudEvent, HTTP } from 'cloudevents';

const EXCHANGE = 'restaurant.events', QUEUE = 'cloudevents-sdk';
const PRICES = { 1: 18000, 2: 20000.5 };
const [mode, ...eventPaths] = process.argv.slice(2);

// Rejects an event that is not valid by the specification.
function read(body, contentType) {
  const event = HTTP.toEvent({ headers: { 'content-type': contentType }, body: body.toString() });
  event.validate();
  return event;
}

const write = {
  structured: event => HTTP.structured(event),
  binary: event => HTTP.binary(event),
  colons(event) {
    const { headers, body } = HTTP.binary(event);
    const renamed = Object.entries(headers).map(([name, value]) => [name.replace(/^ce-/, 'cloudEvents:'), value]);
    return { headers: Object.fromEntries(renamed), body };
  },
}[mode];

// For each request: its routing key, and its reply as [type, routing key, data].
const handlers = {
  OrderCreated: ['order.created', ({ order_id, lines }) =>
    ['MenuReserved', 'menu.reserved', { order_id, reservation_id: `R${order_id}`,
      items: lines.map(({ menu_id }) => ({ id: menu_id, name: `Menu ${menu_id}`, price: PRICES[menu_id], stock: 9 })) }]],
  StockReleaseRequested: ['menu.release_requested', ({ order_id, release_id }) =>
    ['StockReleased', 'menu.released', { order_id, release_id }]],
  PaymentRequested: ['payment.requested', ({ order_id, amount }) =>
    ['PaymentCompleted', 'payment.completed', { order_id, payment_id: `P${order_id}`, amount }]],
  RefundRequested: ['payment.refund_requested', ({ order_id, refund_id }) =>
    ['PaymentRefunded', 'payment.refunded', { order_id, refund_id }]],
};

for (const path of eventPaths) {
  const body = readFileSync(path), expected = JSON.parse(body), event = read(body, 'application/cloudevents+json');
  for (const name of Object.keys(expected)) {
    const value = name === 'time' ? new Date(expected.time).toISOString() : expected[name];
    if (JSON.stringify(event[name]) !== JSON.stringify(value)) throw new Error(`${path}: ${name} is ${event[name]}`);
  }
}

const connection = await amqp.connect(process.env.RABBITMQ_URL);
const channel = await connection.createConfirmChannel();
await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
for (const [key] of Object.values(handlers)) await channel.bindQueue(QUEUE, EXCHANGE, key);
await channel.consume(QUEUE, async message => {
  const request = read(message.content, message.properties.contentType);
  const [type, routingKey, data] = handlers[request.type][1](request.data);
  const event = new CloudEvent({
    type, source: '/cloudevents-sdk', subject: request.subject, datacontenttype: 'application/json', data,
  });
  const { headers: { 'content-type': contentType, ...headers }, body } = write(event);
  channel.publish(EXCHANGE, routingKey, Buffer.from(body), { contentType, headers, persistent: true, mandatory: true });
  await channel.waitForConfirms();
  channel.ack(message);
});
console.log('consuming');
