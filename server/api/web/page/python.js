/** Tools from Python functions: signature, types and docstring. */

const SIMPLE = {
  str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", None: "null",
  List: "array", Dict: "object", tuple: "array", set: "array",
};
const CONSTANTS = new Map([["True", true], ["False", false], ["None", null]]);
const NOT_ARGUMENTS = ["self", "cls", "/", "*"];

/** The tools of the functions in a text. Raises Error with what cannot be read. */
export function toolsOfPython(text) {
  const tools = [];
  const heads = /(?:^|\n)[ \t]*(?:async\s+)?def\s+(\w+)\s*\(/g;
  for (let head = heads.exec(text); head; head = heads.exec(text)) {
    const open = heads.lastIndex - 1;
    const close = closing(text, open);
    if (close < 0) throw new Error(`The bracket of ${head[1]}( is not closed.`);
    tools.push(toolOf(head[1], text.slice(open + 1, close), docstringAfter(text, close)));
  }
  if (!tools.length) throw new Error("There is no function: paste from def on.");
  return tools;
}

function toolOf(name, signature, docstring) {
  const described = argumentsIn(docstring);
  const properties = Object.create(null);
  const required = [];
  for (const part of split(withoutComments(signature), ",")) {
    const [head, fallback] = split(part, "=").map((one) => one.trim());
    const [argument, type] = split(head, ":").map((one) => one.trim());
    if (!argument || NOT_ARGUMENTS.includes(argument) || argument.startsWith("*")) continue;
    properties[argument] = typeOf(type ?? "");
    if (described[argument]) properties[argument].description = described[argument];
    if (fallback === undefined) required.push(argument);
    else if (literal(fallback) !== undefined) properties[argument].default = literal(fallback);
  }
  const parameters = { type: "object", properties, additionalProperties: false };
  if (required.length) parameters.required = required;
  return { name, description: summaryOf(docstring), parameters };
}

/** The schema of an annotation; anything where it is not known. */
function typeOf(text) {
  const type = text.replace(/^["'](.*)["']$/, "$1").replace(/\b(?:typing|t|collections\.abc)\./g, "").trim();
  const options = split(type, "|").map((one) => one.trim());
  if (options.length > 1) return oneOf(options.map(typeOf));
  const generic = /^(\w+)\s*\[([\s\S]*)\]$/.exec(type);
  if (!generic) return Object.hasOwn(SIMPLE, type) ? { type: SIMPLE[type] } : {};
  const [, name, inner] = generic;
  const parts = split(inner, ",").map((one) => one.trim());
  switch (name) {
    case "Optional":
      return oneOf([typeOf(inner), { type: "null" }]);
    case "Union":
      return oneOf(parts.map(typeOf));
    case "Literal":
      return { enum: parts.map(literal) };
    case "Annotated": {
      const text = literal(parts[1] ?? "");
      return typeof text === "string" ? { ...typeOf(parts[0]), description: text } : typeOf(parts[0]);
    }
    case "dict":
    case "Dict":
    case "Mapping":
      return { type: "object", additionalProperties: typeOf(parts[1] ?? "") };
    case "tuple":
      return { type: "array", prefixItems: parts.map(typeOf) };
    default:
      return { type: "array", items: typeOf(parts[0]) };
  }
}

function oneOf(schemas) {
  const plain = schemas.every((one) => Object.keys(one).length === 1 && typeof one.type === "string");
  return plain ? { type: [...new Set(schemas.map((one) => one.type))] } : { anyOf: schemas };
}

/** The value of a literal; undefined for anything else. */
function literal(text) {
  if (CONSTANTS.has(text)) return CONSTANTS.get(text);
  const quoted = /^(["'])((?:\\.|(?!\1).)*)\1$/s.exec(text);
  if (quoted) return quoted[2].replace(/\\(.)/g, (_, one) => ({ n: "\n", t: "\t" })[one] ?? one);
  return /^-?\d[\d_]*(\.\d+)?$/.test(text) ? Number(text.replaceAll("_", "")) : undefined;
}

/** The place where the bracket at `open` is closed; -1 if it is not. */
function closing(text, open) {
  let depth = 0;
  for (let at = open; at < text.length; at += 1) {
    if ("\"'".includes(text[at])) at = endOfString(text, at);
    else if ("([{".includes(text[at])) depth += 1;
    else if (")]}".includes(text[at]) && (depth -= 1) === 0) return at;
  }
  return -1;
}

/** The text at these separators, those in brackets and strings left alone. */
function split(text, separator) {
  const parts = [""];
  let depth = 0;
  for (let at = 0; at < text.length; at += 1) {
    const one = text[at];
    if ("\"'".includes(one)) {
      const end = endOfString(text, at);
      parts[parts.length - 1] += text.slice(at, end + 1);
      at = end;
    } else if (one === separator && depth === 0) parts.push("");
    else {
      depth += "([{".includes(one) ? 1 : ")]}".includes(one) ? -1 : 0;
      parts[parts.length - 1] += one;
    }
  }
  return parts;
}

function endOfString(text, at) {
  const quote = text[at];
  for (let end = at + 1; end < text.length; end += 1) {
    if (text[end] === "\\") end += 1;
    else if (text[end] === quote) return end;
  }
  return text.length;
}

const withoutComments = (text) => text.replace(/#[^\n"']*(?=\n|$)/g, "");

function docstringAfter(text, close) {
  const found = /^\s*(?:->[^:]*(?:\[[^\]]*\][^:]*)*)?:\s*(?:#[^\n]*\n\s*)?[rR]?("""|''')([\s\S]*?)\1/.exec(text.slice(close + 1));
  return found ? found[2] : "";
}

/** The text of a docstring before its list of arguments. */
function summaryOf(docstring) {
  const [head] = docstring.split(/\n\s*(?:Args|Arguments|Parameters|Params|Returns|Raises|Example|Examples)\s*:?\s*\n|\n\s*:param/);
  return head.split("\n").map((line) => line.trim()).join(" ").trim();
}

/** Descriptions of arguments, as Google and Sphinx write them. */
function argumentsIn(docstring) {
  const found = Object.create(null);
  for (const line of docstring.split("\n")) {
    const match = /^\s*(?::param\s+(?:\w+\s+)?)?(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)$/.exec(line);
    if (match) found[match[1]] ??= match[2].trim();
  }
  return found;
}
