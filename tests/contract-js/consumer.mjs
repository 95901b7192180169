// A combined Menu and Payment Service that knows only the AsyncAPI document (first argument): it reads the exchange,
// routing keys, message types and replies from it, and validates every message in both directions against its schemas.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';
import Ajv from 'ajv';
import addFormats from 'ajv-formats';
import amqp from 'amqplib';

const QUEUE = 'asyncapi-consumer';
const MENU = { 1: { name: 'Nasi Ayam Bakar', price: 18000, stock: 15 }, 2: { name: 'Kwetiau Goreng', price: 20000.5, stock: 7 } };

const { document } = await new Parser().parse(readFileSync(process.argv[2], 'utf8'));
const ajv = addFormats(new Ajv({ allowUnionTypes: true }));
ajv.addVocabulary(['x-parser-schema-id']);

// For each message of the document: its exchange and routing key, its schema, and its first reply.
const contract = {};
for (const operation of document.operations().all()) {
  const channel = operation.channels().all()[0];
  const { exchange } = channel.bindings().get('amqp').value();
  const replies = operation.reply()?.messages().all().map(each => each.name()) ?? [];
  for (const message of operation.messages().all()) {
    contract[message.name()] = {
      expectsReply: operation.action() === 'send' && replies.length > 0,
      exchange,
      routingKey: channel.address(),
      contentType: message.contentType(),
      amqpType: message.bindings().get('amqp').value().messageType,
      example: message.examples().all()[0].payload(),
      validate: ajv.compile(message.payload().json()),
      reply: replies[0],
    };
  }
}

function check(type, event) {
  const { validate } = contract[type];
  if (!validate(event)) throw new Error(`${type} does not match the document: ${ajv.errorsText(validate.errors)}`);
}

const id = randomUUID;
const replyData = {
  MenuReserved: ({ order_id, lines }) => ({
    order_id,
    reservation_id: id(),
    items: lines.map(({ menu_id, quantity }) => {
      MENU[menu_id].stock -= quantity;
      return { id: menu_id, ...MENU[menu_id] };
    }),
  }),
  StockReleased: ({ order_id, release_id }) => ({ order_id, release_id }),
  PaymentCompleted: ({ order_id, amount }) => ({ order_id, payment_id: id(), amount }),
  PaymentRefunded: ({ order_id, refund_id }) => ({ order_id, refund_id }),
};

const connection = await amqp.connect(process.env.RABBITMQ_URL);
const channel = await connection.createConfirmChannel();
await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
for (const { expectsReply, exchange, routingKey } of Object.values(contract)) {
  if (!expectsReply) continue;
  const { name, type, durable, autoDelete } = exchange;
  await channel.assertExchange(name, type, { durable, autoDelete });
  await channel.bindQueue(QUEUE, name, routingKey);
}
await channel.consume(QUEUE, async message => {
  const event = JSON.parse(message.content);
  check(event.type, event);
  const type = contract[event.type].reply;
  const { exchange, routingKey, contentType, amqpType, example } = contract[type];
  const attributes = { id: id(), time: new Date().toISOString(), subject: event.subject, correlationid: event.correlationid };
  const reply = { ...example, ...attributes, data: replyData[type](event.data) };
  check(type, reply);
  const properties = { type: amqpType, messageId: reply.id, contentType, persistent: true, mandatory: true };
  channel.publish(exchange.name, routingKey, Buffer.from(JSON.stringify(reply)), properties);
  await channel.waitForConfirms();
  channel.ack(message);
});
console.log('consuming');
