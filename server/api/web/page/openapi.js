/** Tools from an OpenAPI document: one for each operation. */

import { decoded, isObject } from "./schema.js";

const METHODS = ["get", "put", "post", "delete", "patch", "head", "options"];
const JSON_TYPE = /^application\/(?:[\w.-]+\+)?json\s*(?:;|$)/i;
const MOST_NODES = 20_000;
const LEFT_OUT = ["xml", "externalDocs", "example"]; // keywords of OpenAPI that say nothing to a model
const MAPS = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"]; // their keys are names
const VALUES = ["enum", "const", "default", "examples", "required"];

/** The tools of a document, with what is left out as `note`. Raises Error with what is missing. */
export function toolsOfOpenApi(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error("This is no JSON. An OpenAPI document in YAML has to be converted first.");
  }
  if (document?.swagger) throw new Error("This is Swagger 2: convert it to OpenAPI 3 first.");
  if (!isObject(document?.paths)) throw new Error("This is no OpenAPI document: it has no paths.");
  const tools = [];
  for (const [path, item] of Object.entries(document.paths)) {
    for (const method of METHODS) {
      if (isObject(item?.[method])) tools.push(toolOf(document, path, method, item));
    }
  }
  if (!tools.length) throw new Error("The document has no operation.");
  return tools;
}

function toolOf(document, path, method, item) {
  const operation = item[method];
  const reader = new SchemaReader(document);
  const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((one) => reader.resolved(one));
  const properties = Object.create(null);
  const required = [];
  for (const parameter of parameters.filter((one) => isObject(one) && ["path", "query"].includes(one.in))) {
    const schema = reader.read(parameter.schema ?? Object.values(parameter.content ?? {})[0]?.schema ?? { type: "string" });
    properties[parameter.name] = parameter.description ? { ...schema, description: parameter.description } : schema;
    if (parameter.required || parameter.in === "path") required.push(parameter.name);
  }
  const left = parameters.filter((one) => isObject(one) && !["path", "query"].includes(one.in)).map((one) => one.name);
  const notes = left.length ? [`of headers and cookies are left out: ${left.join(", ")}`] : [];
  const body = reader.resolved(operation.requestBody);
  const types = Object.keys(body?.content ?? {});
  const media = body?.content?.[types.find((type) => JSON_TYPE.test(type))];
  if (types.length && !media) notes.push(`a body of ${types.join(" or ")} is left out`);
  if (media?.schema) {
    const schema = reader.read(media.schema);
    const whole = reader.resolvedIn(schema);
    if (isObject(whole.properties) && !Object.keys(whole.properties).some((name) => name in properties)) {
      Object.assign(properties, whole.properties);
      required.push(...(whole.required ?? []));
    } else {
      properties.body = schema;
      if (body.required) required.push("body");
    }
  }
  const schema = { type: "object", properties };
  if (required.length) schema.required = [...new Set(required)];
  if (Object.keys(reader.definitions).length) schema.$defs = reader.definitions;
  return {
    name: nameOf(operation.operationId ?? method + path),
    description: [operation.summary, operation.description].filter(Boolean).join(". ").slice(0, 1000) || `${method.toUpperCase()} ${path}`,
    parameters: schema,
    note: notes.join("; "),
  };
}

/** A name that tools may have. */
export function nameOf(text) {
  return text.replace(/[^a-zA-Z0-9_-]+/g, "_").replace(/^_+|_+$/g, "").slice(0, 64) || "tool";
}

/** Copies schemas, with the components that they refer to beside them. */
class SchemaReader {
  constructor(document) {
    this.document = document;
    this.definitions = Object.create(null);
    this.names = new Map(); // of the definitions, by what refers to them
    this.numNodes = 0;
  }

  /** What a reference leads to; anything else as it is. */
  resolved(node) {
    for (let hops = 0; isObject(node) && typeof node.$ref === "string" && hops < 20; hops += 1) node = this.at(node.$ref);
    return node;
  }

  /** The same within what was read. */
  resolvedIn(schema) {
    return this.definitions[/^#\/\$defs\/(.*)$/.exec(schema.$ref ?? "")?.[1]] ?? schema;
  }

  at(reference) {
    if (!reference.startsWith("#")) throw new Error(`The document refers to another one: ${reference}.`);
    let node = this.document;
    for (const part of reference.slice(1).split("/").filter(Boolean)) {
      const name = decoded(part).replaceAll("~1", "/").replaceAll("~0", "~");
      node = isObject(node) || Array.isArray(node) ? (Object.hasOwn(node, name) ? node[name] : undefined) : undefined;
    }
    if (node === undefined) throw new Error(`The document has nothing at ${reference}.`);
    return node;
  }

  /** A copy of a schema. */
  read(node) {
    this.numNodes += 1;
    if (this.numNodes > MOST_NODES) throw new Error("A schema of this document is too large for a tool.");
    if (Array.isArray(node)) return node.map((one) => this.read(one));
    if (!isObject(node)) return node;
    if (typeof node.$ref === "string") return { $ref: `#/$defs/${this.define(node.$ref)}` };
    const copied = Object.entries(node).filter(([key]) => !LEFT_OUT.includes(key));
    return asJsonSchema(Object.fromEntries(copied.map(([key, value]) => [key, this.readPart(key, value)])));
  }

  readPart(key, value) {
    if (VALUES.includes(key)) return value;
    if (!MAPS.includes(key) || !isObject(value)) return this.read(value);
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, this.read(one)]));
  }

  define(reference) {
    const known = this.names.get(reference);
    if (known) return known;
    const wanted = nameOf(reference.split("/").at(-1));
    let name = wanted;
    for (let number = 2; name in this.definitions; number += 1) name = `${wanted}_${number}`;
    this.names.set(reference, name);
    this.definitions[name] = {}; // a schema may refer to itself
    this.definitions[name] = this.read(this.at(reference));
    return name;
  }
}

/** What OpenAPI 3.0 writes differently from JSON Schema. */
function asJsonSchema(schema) {
  if (schema.nullable === true && typeof schema.type === "string") {
    schema.type = [schema.type, "null"];
    if (Array.isArray(schema.enum) && !schema.enum.includes(null)) schema.enum = [...schema.enum, null];
    delete schema.nullable;
  }
  for (const [exclusive, bound] of [["exclusiveMinimum", "minimum"], ["exclusiveMaximum", "maximum"]]) {
    if (typeof schema[exclusive] !== "boolean") continue;
    if (schema[exclusive] && typeof schema[bound] === "number") {
      schema[exclusive] = schema[bound];
      delete schema[bound];
    } else delete schema[exclusive];
  }
  return schema;
}
