// Generate TypeScript models of the AsyncAPI document with Modelina: node models.mjs asyncapi.json DIRECTORY
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { TypeScriptGenerator } from '@asyncapi/modelina';

const [documentPath, directory] = process.argv.slice(2);
const generator = new TypeScriptGenerator({ modelType: 'interface', enumType: 'union', rawPropertyNames: true });
const document = JSON.parse(readFileSync(documentPath, 'utf8'));
mkdirSync(directory);
for (const { modelName, result } of await generator.generateCompleteModels(document, { exportType: 'named' })) {
  if (modelName) writeFileSync(`${directory}/${modelName}.ts`, result); // a constant has no name of its own
}
