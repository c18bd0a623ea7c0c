/** Checks of JSON Schemas as they are typed: faults that the server would refuse, and what it would not understand. */

const TYPES = ["string", "number", "integer", "boolean", "array", "object", "null"];
const SCHEMA = ["items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
  "unevaluatedProperties", "unevaluatedItems", "contentSchema"];
const SCHEMAS = ["allOf", "anyOf", "oneOf", "prefixItems"];
const MAPS = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
const NUMBERS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const COUNTS = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains",
  "maxContains"];
const OTHER = ["type", "enum", "const", "required", "title", "description", "default", "examples", "$ref", "$schema",
  "$id", "$anchor", "$comment", "pattern", "format", "uniqueItems", "deprecated", "readOnly", "writeOnly",
  "dependentRequired", "nullable", "discriminator", "example", "$dynamicRef", "$dynamicAnchor", "contentEncoding",
  "contentMediaType"];
const KNOWN = new Set([...SCHEMA, ...SCHEMAS, ...MAPS, ...NUMBERS, ...COUNTS, ...OTHER]);
const MOST_DEPTH = 64;

/** The schema in a text and its problems: `{ schema, problems: [{ path, text, serious }] }`; no schema if it is no JSON. */
export function checkText(text) {
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    return { schema: null, problems: [{ path: "", text: placed(error, text), serious: true }] };
  }
  const problems = [];
  if (!isObject(schema)) problems.push({ path: "", text: "a schema is an object", serious: true });
  else {
    check(schema, "", schema, problems, 0);
    if (schema.type !== "object" && !schema.$ref && !schema.anyOf) {
      problems.push({ path: "type", text: 'arguments are an object: write "type": "object"', serious: true });
    }
  }
  return { schema: problems.some((one) => one.serious) ? null : schema, problems };
}

/** A fault of JSON with its line, where the browser tells the place. */
function placed(error, text) {
  const place = /position (\d+)/.exec(error.message);
  if (!place) return `no JSON: ${error.message}`;
  const before = text.slice(0, Number(place[1])).split("\n");
  return `no JSON: line ${before.length}, column ${before.at(-1).length + 1}: ${error.message.split(/ in JSON| \(/)[0]}`;
}

function check(schema, path, root, problems, depth) {
  if (typeof schema === "boolean") return;
  const report = (at, text, serious = true) => problems.push({ path: join(path, at), text, serious });
  if (!isObject(schema)) return report("", "a schema is an object, true or false");
  if (depth > MOST_DEPTH) return report("", `more than ${MOST_DEPTH} levels`);
  checkType(schema, report);
  if ("enum" in schema && !(Array.isArray(schema.enum) && schema.enum.length)) report("enum", "a list of values");
  if ("required" in schema) checkRequired(schema, report);
  if ("$ref" in schema && !resolves(schema.$ref, root)) report("$ref", `there is nothing at ${schema.$ref}`);
  if ("pattern" in schema) checkPattern(schema.pattern, report);
  for (const name of NUMBERS) if (name in schema && typeof schema[name] !== "number") report(name, "a number");
  for (const name of COUNTS) {
    if (name in schema && !(Number.isInteger(schema[name]) && schema[name] >= 0)) report(name, "a whole number from 0");
  }
  for (const name of Object.keys(schema)) {
    if (!KNOWN.has(name) && !name.startsWith("x-")) report(name, `not a keyword of JSON Schema${meant(name)}`, false);
  }
  checkParts(schema, path, root, problems, depth, report);
}

function checkParts(schema, path, root, problems, depth, report) {
  for (const name of SCHEMA) if (name in schema) check(schema[name], join(path, name), root, problems, depth + 1);
  for (const name of SCHEMAS.filter((one) => one in schema)) {
    if (!Array.isArray(schema[name]) || !schema[name].length) report(name, "a list of schemas");
    else schema[name].forEach((one, at) => check(one, join(path, `${name}[${at}]`), root, problems, depth + 1));
  }
  for (const name of MAPS.filter((one) => one in schema)) {
    if (!isObject(schema[name])) report(name, "an object of schemas");
    else for (const [key, one] of Object.entries(schema[name])) {
      check(one, join(path, `${name}.${key}`), root, problems, depth + 1);
    }
  }
}

function checkType({ type }, report) {
  if (type === undefined) return;
  const types = Array.isArray(type) ? type : [type];
  for (const one of types) if (!TYPES.includes(one)) report("type", `"${one}" is none of ${TYPES.join(", ")}`);
}

function checkRequired({ required, properties, additionalProperties }, report) {
  if (!Array.isArray(required) || required.some((name) => typeof name !== "string")) {
    return report("required", "a list of names");
  }
  if (!isObject(properties)) return undefined;
  for (const name of required) {
    if (!(name in properties)) report("required", `"${name}" is no property`, additionalProperties === false);
  }
  return undefined;
}

function checkPattern(pattern, report) {
  if (typeof pattern !== "string") return report("pattern", "a regular expression as text");
  try {
    new RegExp(pattern, "u");
  } catch (error) {
    report("pattern", error.message, false); // the server reads other syntaxes as well
  }
  return undefined;
}

function resolves(reference, root) {
  if (typeof reference !== "string" || !reference.startsWith("#")) return false;
  let node = root;
  for (const part of reference.slice(1).split("/").filter(Boolean)) {
    const name = decoded(part).replaceAll("~1", "/").replaceAll("~0", "~");
    if (typeof node !== "object" || node === null || !Object.hasOwn(node, name)) return false;
    node = node[name];
  }
  return true;
}

/** A part of an address without its escapes; as it is where these are none. */
export function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Words on a keyword that was probably meant. */
function meant(name) {
  const flat = (one) => one.toLowerCase().replace(/[^a-z]/g, "").replace(/s$/, "");
  const near = [...KNOWN].find((one) => flat(one) === flat(name) || distance(flat(one), flat(name)) === 1);
  return near ? `; is ${near} meant?` : "";
}

/** 1 for texts that differ by one letter, more or less exactly; 2 for all others. */
function distance(a, b) {
  if (Math.abs(a.length - b.length) > 1) return 2;
  let at = 0;
  while (at < Math.min(a.length, b.length) && a[at] === b[at]) at += 1;
  const rests = [[a.slice(at + 1), b.slice(at + 1)], [a.slice(at), b.slice(at + 1)], [a.slice(at + 1), b.slice(at)]];
  return rests.some(([one, other]) => one === other) ? 1 : 2;
}

const join = (path, name) => [path, name].filter(Boolean).join(".");

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
