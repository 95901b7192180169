// A Menu and a Payment Service in one, written only from the AsyncAPI document named by the first argument: exchange,
// routing keys, message types and the shape of every answer are read from it. Messages in and out are held to its schemas.
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

// What the document says of each message: where it travels, how it looks, and what answers it.
const contract = {};
for (const operation of document.operations().all()) {
  const channel = operation.channels().all()[0];
  const { exchange } = channel.bindings().get('amqp').value();
  const answers = operation.reply()?.messages().all().map(each => each.name()) ?? [];
  for (const message of operation.messages().all()) {
    contract[message.name()] = {
      asked: operation.action() === 'send' && answers.length > 0,
      exchange,
      routingKey: channel.address(),
      contentType: message.contentType(),
      amqpType: message.bindings().get('amqp').value().messageType,
      example: message.examples().all()[0].payload(),
      validate: ajv.compile(message.payload().json()),
      answer: answers[0],
    };
  }
}

function hold(type, event) {
  const { validate } = contract[type];
  if (!validate(event)) throw new Error(`${type} is not what the document says: ${ajv.errorsText(validate.errors)}`);
}

const id = randomUUID;
const answers = {
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
for (const { asked, exchange, routingKey } of Object.values(contract)) {
  if (!asked) continue;
  const { name, type, durable, autoDelete } = exchange;
  await channel.assertExchange(name, type, { durable, autoDelete });
  await channel.bindQueue(QUEUE, name, routingKey);
}
await channel.consume(QUEUE, async message => {
  const event = JSON.parse(message.content);
  hold(event.type, event);
  const type = contract[event.type].answer;
  const { exchange, routingKey, contentType, amqpType, example } = contract[type];
  const about = { id: id(), time: new Date().toISOString(), subject: event.subject, correlationid: event.correlationid };
  const answer = { ...example, ...about, data: answers[type](event.data) };
  hold(type, answer);
  const properties = { type: amqpType, messageId: answer.id, contentType, persistent: true, mandatory: true };
  channel.publish(exchange.name, routingKey, Buffer.from(JSON.stringify(answer)), properties);
  await channel.waitForConfirms();
  channel.ack(message);
});
console.log('consuming');
