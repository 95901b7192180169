// Check the AsyncAPI document (first argument) with the official parser, and validate the events in the other files
// against it. Exits with 1 after printing every problem.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';
import Ajv from 'ajv';
import addFormats from 'ajv-formats';

const [documentPath, ...eventPaths] = process.argv.slice(2);
const { document, diagnostics } = await new Parser().parse(readFileSync(documentPath, 'utf8'));
// Severity 0 is an error and 1 a warning; the others are remarks.
const problems = diagnostics.filter(found => found.severity <= 1).map(found => `${found.path.join('.')}: ${found.message}`);

const ajv = addFormats(new Ajv({ strict: true, allowUnionTypes: true }));
ajv.addVocabulary(['x-parser-schema-id']); // added by the parser
const messages = Object.fromEntries((document?.allMessages().all() ?? []).map(each => [each.name(), each]));
const validators = Object.fromEntries(
  Object.entries(messages).map(([name, message]) => [name, ajv.compile(message.payload().json())]),
);

function check(event, validate, name) {
  if (!validate(event)) problems.push(`${name}: ${ajv.errorsText(validate.errors)}`);
}
for (const [name, message] of Object.entries(messages)) {
  for (const example of message.examples().all()) check(example.payload(), validators[name], `example of ${name}`);
}
for (const path of document ? eventPaths : []) {
  const event = JSON.parse(readFileSync(path, 'utf8'));
  check(event, validators[event.type], path);
}
if (problems.length) {
  console.error(problems.join('\n'));
  process.exit(1);
}
console.log(`${Object.keys(messages).length} messages, ${eventPaths.length} events`);
