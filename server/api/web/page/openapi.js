/** Tools from an OpenAPI document: one for each operation. */

import { isObject } from "./schema.js";

const METHODS = ["get", "put", "post", "delete", "patch", "head", "options"];
const MOST_NODES = 20_000;

/** The tools of a document. Raises Error with what is missing. */
export function toolsOfOpenApi(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error("This is no JSON. An OpenAPI document in YAML has to be converted first.");
  }
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
    const schema = reader.read(parameter.schema ?? { type: "string" });
    properties[parameter.name] = parameter.description ? { ...schema, description: parameter.description } : schema;
    if (parameter.required || parameter.in === "path") required.push(parameter.name);
  }
  const body = reader.resolved(operation.requestBody);
  const media = body?.content?.["application/json"];
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
    let node = this.document;
    for (const part of reference.replace(/^#/, "").split("/").filter(Boolean)) {
      node = node?.[part.replaceAll("~1", "/").replaceAll("~0", "~")];
    }
    if (node === undefined) throw new Error(`The document has nothing at ${reference}.`);
    return node;
  }

  read(node) {
    this.numNodes += 1;
    if (this.numNodes > MOST_NODES) throw new Error("A schema of this document is too large for a tool.");
    if (Array.isArray(node)) return node.map((one) => this.read(one));
    if (!isObject(node)) return node;
    if (typeof node.$ref === "string") return { $ref: `#/$defs/${this.define(node.$ref)}` };
    const copied = Object.entries(node).filter(([key]) => !["xml", "externalDocs", "example"].includes(key));
    const copy = Object.fromEntries(copied.map(([key, value]) => [key, this.read(value)]));
    if (copy.nullable === true && typeof copy.type === "string") {
      copy.type = [copy.type, "null"];
      delete copy.nullable;
    }
    return copy;
  }

  define(reference) {
    const name = nameOf(reference.split("/").at(-1));
    if (!(name in this.definitions)) {
      this.definitions[name] = {}; // a schema may refer to itself
      this.definitions[name] = this.read(this.at(reference));
    }
    return name;
  }
}
