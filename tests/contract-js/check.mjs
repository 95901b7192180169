// The official parser's word on the AsyncAPI document (first argument), and whether the events in the other files are
// what the document says of them. Exits with 1 and every complaint.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';
import Ajv from 'ajv';
import addFormats from 'ajv-formats';

const [documentPath, ...eventPaths] = process.argv.slice(2);
const { document, diagnostics } = await new Parser().parse(readFileSync(documentPath, 'utf8'));
// 0 is an error, 1 a warning; what is left are remarks.
const complaints = diagnostics.filter(found => found.severity <= 1).map(found => `${found.path.join('.')}: ${found.message}`);

const ajv = addFormats(new Ajv({ strict: true, allowUnionTypes: true }));
ajv.addVocabulary(['x-parser-schema-id']); // the parser's own mark
const messages = Object.fromEntries((document?.allMessages().all() ?? []).map(each => [each.name(), each]));
const validators = Object.fromEntries(
  Object.entries(messages).map(([name, message]) => [name, ajv.compile(message.payload().json())]),
);

function hold(event, validate, name) {
  if (!validate(event)) complaints.push(`${name}: ${ajv.errorsText(validate.errors)}`);
}
for (const [name, message] of Object.entries(messages)) {
  for (const example of message.examples().all()) hold(example.payload(), validators[name], `example of ${name}`);
}
for (const path of document ? eventPaths : []) {
  const event = JSON.parse(readFileSync(path, 'utf8'));
  hold(event, validators[event.type], path);
}
if (complaints.length) {
  console.error(complaints.join('\n'));
  process.exit(1);
}
console.log(`${Object.keys(messages).length} messages, ${eventPaths.length} events`);
