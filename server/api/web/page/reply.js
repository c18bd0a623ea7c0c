/** Replies as the page holds them, whatever surface they came by. */

const LEAST_SECONDS = 0.2; // that say something about a rate

/** An empty reply, which `read` fills. */
export function newReply() {
  return {
    role: "assistant",
    text: "",
    thoughts: "",
    calls: [], // { id, name, custom, arguments, done, flags, raw, result }
    finish: null, // "stop", "length", "tool_calls", "stopped", "interrupted" or "error"
    signature: null,
    usage: null, // { prompt, cached, completion, reasoning }
    notes: null, // the server's `toolwire` object, without the trace
    trace: null, // what its deltas add up to so far
    error: null,
    times: { sent: performance.now(), first: null, end: null },
  };
}

/** A new call of a reply. */
export function newCall(id, name, custom) {
  return { id, name, custom, arguments: "", done: false, flags: [], raw: "", result: null };
}

/** Keep the server's own object of a reply: notes, flags of calls, what its trace has gained. */
export function takeNotes(reply, own) {
  if (!own) return;
  const { trace_delta: gained, ...notes } = own;
  if (gained) addTrace((reply.trace ??= newTrace()), gained);
  if (Object.keys(notes).length) reply.notes = { ...reply.notes, ...notes };
  for (const note of notes.calls ?? []) {
    const call = reply.calls[note.index];
    if (call) Object.assign(call, { flags: note.flags ?? [], raw: note.raw ?? "" });
  }
}

function newTrace() {
  return { prompt: [], cached_tokens: 0, grammar: null, tokens: [], steps: [], stages: [] };
}

function addTrace(trace, gained) {
  for (const name of ["prompt", "tokens", "steps", "stages"]) for (const one of gained[name] ?? []) trace[name].push(one);
  trace.cached_tokens += gained.cached_tokens ?? 0;
  trace.grammar ??= gained.grammar ?? null;
}

/** The tokens of a reply that ended before the server counted them, as far as its trace came. */
export function countTrace(trace) {
  if (!trace) return null;
  return { prompt: trace.prompt.length, cached: trace.cached_tokens, completion: trace.tokens.length, reasoning: null };
}

/** Tokens a second from the first step of a reply to its last, null where that was not measured.

The trace tells when the steps came; the times of this page are those of arrival, and many tokens may arrive together.
*/
export function rateOf({ trace, times, usage }) {
  const steps = trace?.steps ?? [];
  if (steps.length > 1) {
    const written = steps.slice(1).reduce((sum, step) => sum + step.tokens, 0);
    const seconds = steps.at(-1).at_s - steps[0].at_s;
    return seconds > 0 ? written / seconds : null;
  }
  const seconds = times?.first && times.end ? (times.end - times.first) / 1000 : 0;
  return !trace && seconds >= LEAST_SECONDS && usage?.completion > 1 ? usage.completion / seconds : null;
}

/** Whether a call can be sent back: it is whole, and the reply was not stopped in it. */
export function isWhole(call) {
  return call.done && !call.flags.includes("truncated");
}
