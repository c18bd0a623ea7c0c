/** Tools from Python functions: signature, types and docstring. */

const SIMPLE = {
  str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", None: "null",
  List: "array", Dict: "object", tuple: "array", set: "array", Sequence: "array", Mapping: "object",
};
const LISTS = ["list", "List", "set", "Set", "frozenset", "FrozenSet", "Sequence", "Iterable", "Collection"];
const CONSTANTS = new Map([["True", true], ["False", false], ["None", null]]);
const NOT_ARGUMENTS = ["self", "cls", "/", "*"];
const HEAD = /(?:^|\n)[ \t]*(?:async\s+)?def\s+([\p{L}\p{N}_]+)\s*(?:\[[^\]]*\]\s*)?\(/gu;

/** The tools of the functions in a text, with what is left out as `note`. Raises Error with what cannot be read. */
export function toolsOfPython(text) {
  const tools = [];
  const { code, bare } = withoutComments(text);
  for (const { 0: head, 1: name, index } of bare.matchAll(HEAD)) {
    const open = index + head.length - 1;
    const close = closing(bare, open);
    if (close < 0) throw new Error(`The bracket of ${name}( is not closed.`);
    tools.push(toolOf(name, code.slice(open + 1, close), docstringAfter(code, bare, close)));
  }
  if (!tools.length) throw new Error("There is no function: paste from def on.");
  return tools;
}

function toolOf(name, signature, docstring) {
  const described = argumentsIn(docstring);
  const parameters = { type: "object", properties: Object.create(null), additionalProperties: false };
  const required = [];
  const left = [];
  for (const part of split(signature, ",")) {
    const [head, fallback] = cut(part, "=");
    const [argument, type] = cut(head, ":");
    if (!argument || NOT_ARGUMENTS.includes(argument)) continue;
    if (argument.startsWith("**")) parameters.additionalProperties = type ? typeOf(type) : true;
    else if (argument.startsWith("*")) left.push(argument);
    else {
      const schema = typeOf(type ?? "");
      if (described[argument]) schema.description = described[argument];
      if (fallback === undefined) required.push(argument);
      else if (literal(fallback) !== undefined) schema.default = literal(fallback);
      parameters.properties[argument] = schema;
    }
  }
  if (required.length) parameters.required = required;
  const note = left.length ? `${left.join(", ")} is left out: arguments of a tool have names` : "";
  return { name, description: summaryOf(docstring), parameters, note };
}

/** The schema of an annotation; anything where it is not known. */
function typeOf(text) {
  const type = text.replace(/^["'](.*)["']$/, "$1").replace(/\b(?:typing|t|collections\.abc)\./g, "").trim();
  const options = split(type, "|").map((one) => one.trim());
  if (options.length > 1) return oneOf(options.map(typeOf));
  const generic = /^(\w+)\s*\[([\s\S]*)\]$/.exec(type);
  if (!generic) return Object.hasOwn(SIMPLE, type) ? { type: SIMPLE[type] } : {};
  const [, name, inner] = generic;
  const parts = split(inner, ",").map((one) => one.trim()).filter(Boolean);
  if (LISTS.includes(name)) return { type: "array", items: typeOf(parts[0] ?? "") };
  switch (name) {
    case "Optional":
      return oneOf([typeOf(inner), { type: "null" }]);
    case "Union":
      return oneOf(parts.map(typeOf));
    case "Literal": {
      const values = parts.map(literal);
      return values.includes(undefined) ? {} : { enum: values };
    }
    case "Annotated": {
      const text = descriptionIn(parts.slice(1));
      return text === undefined ? typeOf(parts[0]) : { ...typeOf(parts[0]), description: text };
    }
    case "dict":
    case "Dict":
    case "Mapping":
      return { type: "object", additionalProperties: typeOf(parts[1] ?? "") };
    case "tuple":
      return parts[1] === "..." ? { type: "array", items: typeOf(parts[0]) } : { type: "array", prefixItems: parts.map(typeOf) };
    default:
      return {};
  }
}

/** The text among the further parts of an Annotated: a string, or what `Field(description=...)` says. */
function descriptionIn(parts) {
  for (const part of parts) {
    if (typeof literal(part) === "string") return literal(part);
    const inner = /^[\w.]+\(([\s\S]*)\)$/.exec(part)?.[1] ?? "";
    for (const [name, value] of split(inner, ",").map((one) => cut(one, "="))) {
      if (name === "description" && typeof literal(value ?? "") === "string") return literal(value);
    }
  }
  return undefined;
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

/** The text with its comments blanked, `code`, and with its strings blanked too, `bare`: places stay the same. */
function withoutComments(text) {
  const [code, bare] = [[], []];
  const blank = (piece) => piece.replace(/[^\n]/g, " ");
  for (const [piece] of text.matchAll(/#[^\n]*|("""|''')[\s\S]*?(?:\1|$)|"(?:[^"\\\n]+|\\[\s\S])*"?|'(?:[^'\\\n]+|\\[\s\S])*'?|[^#"']+/g)) {
    code.push(piece.startsWith("#") ? blank(piece) : piece);
    bare.push(/^[#"']/.test(piece) ? blank(piece) : piece);
  }
  return { code: code.join(""), bare: bare.join("") };
}

/** The place where the bracket at `open` is closed; -1 if it is not. */
function closing(bare, open) {
  let depth = 0;
  for (let at = open; at < bare.length; at += 1) {
    if ("([{".includes(bare[at])) depth += 1;
    else if (")]}".includes(bare[at]) && (depth -= 1) === 0) return at;
  }
  return -1;
}

/** The text at these separators, those in brackets and strings left alone. */
function split(text, separator) {
  const { bare } = withoutComments(text);
  const parts = [];
  let [depth, from] = [0, 0];
  for (let at = 0; at < bare.length; at += 1) {
    if ("([{".includes(bare[at])) depth += 1;
    else if (")]}".includes(bare[at])) depth -= 1;
    else if (bare[at] === separator && depth === 0) {
      parts.push(text.slice(from, at));
      from = at + 1;
    }
  }
  return [...parts, text.slice(from)];
}

/** What stands before the first separator and behind it; nothing behind where there is none. */
function cut(text, separator) {
  const [first] = split(text, separator);
  return first.length < text.length ? [first.trim(), text.slice(first.length + 1).trim()] : [first.trim()];
}

function docstringAfter(code, bare, close) {
  const colon = close + 1 + split(bare.slice(close + 1), ":")[0].length;
  const found = /^\s*[rRuU]?("""|'''|"|')([\s\S]*?)\1/.exec(code.slice(colon + 1));
  return found ? found[2] : "";
}

/** The text of a docstring before its list of arguments. */
function summaryOf(docstring) {
  const [head] = docstring.split(/\n\s*(?:Args|Arguments|Parameters|Params|Returns|Raises|Example|Examples)\s*:?\s*\n|\n\s*:param/);
  return head.split("\n").map((line) => line.trim()).join(" ").trim();
}

/** Descriptions of arguments, as Google, Sphinx and NumPy write them, with the lines that go on below. */
function argumentsIn(docstring) {
  const found = Object.create(null);
  const numpy = /\n\s*Parameters\s*\n\s*-{3,}/.test(docstring);
  let [name, indent] = [null, 0];
  for (const line of docstring.split("\n")) {
    const depth = line.search(/\S/);
    const match = /^\s*(?::param\s+(?:\w+\s+)?)?([\p{L}\p{N}_]+)\s*(?:\([^)]*\))?\s*:\s*(.+)$/u.exec(line);
    if (name !== null && depth > indent) found[name] = `${found[name]} ${line.trim()}`.trim();
    else if (match && !(match[1] in found)) {
      [name, indent] = [match[1], depth];
      found[name] = numpy ? "" : match[2].trim();
    } else name = null;
  }
  return found;
}
