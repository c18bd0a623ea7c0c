/** Text of JSON, as it was written. */

/** Whether a text is JSON. */
export function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** JSON with line breaks, its numbers, names and texts exactly as written; any other text as it is. */
export function indented(text) {
  if (!isJson(text)) return text;
  const lines = [];
  let depth = 0;
  let empty = false; // nothing is in the bracket that was opened last
  const parts = text.matchAll(/"(?:[^"\\]+|\\.)*"|[[\]{},:]|[^\s"[\]{},:]+/g);
  for (const [part] of parts) {
    const line = `\n${"  ".repeat(Math.max(0, "]}".includes(part) ? depth - 1 : depth))}`;
    if ("]}".includes(part)) {
      lines.push(empty ? part : line + part);
      depth -= 1;
      empty = false;
      continue;
    }
    if (empty) lines.push(line);
    empty = "[{".includes(part);
    if (empty) depth += 1;
    lines.push(part === "," ? `,${line}` : part === ":" ? ": " : part);
  }
  return lines.join("");
}
