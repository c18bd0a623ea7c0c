/** The server, live: what `toolwire top` shows, drawn. It is read while it is looked at. */

import { request, requestJson } from "./api.js";
import { byId, el, svg } from "./dom.js";
import { quantile, readMetrics } from "./openmetrics.js";

const INTERVAL_MS = 1000;
const HISTORY = 60; // samples
const WINDOW = 5; // samples that a rate is taken over
const LATENCIES = [
  ["first token", "toolwire_time_to_first_token_seconds"],
  ["between steps", "toolwire_inter_token_seconds"],
  ["whole request", "toolwire_request_seconds"],
];
const COUNTS = ["engine_preemptions", "engine_restarts", "memory_ooms", "tool_calls"];

export class ServerView {
  constructor(isShown) {
    this.node = byId("server-body");
    this.isShown = isShown;
    this.samples = [];
    this.errors = []; // that this page got
    this.timer = null;
    document.addEventListener("visibilitychange", () => this.watch());
  }

  /** Begin to read, or end where nobody looks. */
  watch() {
    const looked = this.isShown() && document.visibilityState === "visible";
    if (looked && this.timer === null) this.timer = setTimeout(() => this.sample(), 0);
  }

  addError(error) {
    this.errors = [{ time: new Date(), text: error.message }, ...this.errors].slice(0, 5);
  }

  async sample() {
    try {
      const text = await (await request("/metrics", { quiet: true })).text();
      const memory = await requestJson("/v1/memory", { quiet: true }).catch((error) => {
        if (error.status === 503) return null; // the engine is loading
        throw error;
      });
      this.samples = [...this.samples, { time: performance.now(), memory, ...readMetrics(text) }].slice(-HISTORY);
      this.draw();
    } catch (error) {
      this.samples = [];
      const hint = error.status === 401 || error.status === 403 ? " Only the monitoring key reads these figures here." : "";
      this.node.replaceChildren(el("p.fault", {}, error.message + hint));
    }
    const looked = this.isShown() && document.visibilityState === "visible";
    this.timer = looked ? setTimeout(() => this.sample(), INTERVAL_MS) : null;
  }

  draw() {
    const newest = this.samples.at(-1);
    this.node.replaceChildren(
      this.rates(newest),
      this.curve(),
      ...memoryNodes(newest),
      latencyTable(newest),
      el("p.caption", {}, COUNTS.map((name) => `${name.replaceAll("_", " ")} ${of(newest, `${name}_total`)}`).join(" · ")),
      ...this.events(newest),
    );
  }

  rate(name, newest = this.samples.length - 1) {
    const [newer, older] = [this.samples[newest], this.samples[Math.max(0, newest - WINDOW)]];
    const seconds = (newer.time - older.time) / 1000;
    return seconds > 0 ? Math.max(0, of(newer, name) - of(older, name)) / seconds : 0;
  }

  rates(newest) {
    const rate = (name, digits = 0) => `${this.rate(name).toFixed(digits)}/s`;
    const cells = [
      ["output tokens", rate("engine_output_tokens_total")],
      ["prompt tokens", rate("engine_prompt_tokens_total")],
      ["cached tokens", rate("engine_cached_tokens_total")],
      ["requests", rate("requests_total", 1)],
      ["running", of(newest, "sequences_running")],
      ["waiting", of(newest, "sequences_waiting")],
      ["engine", of(newest, "engine_up") ? "ready" : "down"],
    ];
    return el("dl.figures", {}, cells.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
  }

  curve() {
    const rates = this.samples.map((_, at) => this.rate("engine_output_tokens_total", at));
    const most = Math.max(1, ...rates);
    const points = rates.map((rate, at) => `${(at / (HISTORY - 1)) * 600},${58 - (rate / most) * 54}`).join(" ");
    const text = `Output tokens a second, the last minute; at most ${most.toFixed(0)}`;
    const line = svg("polyline", { points, class: "curve" });
    return el("figure", {}, svg("svg", { viewBox: "0 0 600 60", role: "img", "aria-label": text }, line), el("figcaption.caption", {}, text));
  }

  events({ memory }) {
    const guard = (memory?.events ?? []).slice(-5).reverse();
    const lines = [
      ...guard.map(([at, text]) => [new Date(at * 1000), text]),
      ...this.errors.map(({ time, text }) => [time, text]),
    ];
    if (!lines.length) return [];
    const items = lines.map(([time, text]) => el("li", {}, el("time", {}, time.toLocaleTimeString()), ` ${text}`));
    return [el("h3", {}, "Last events and errors"), el("ul.notes", {}, items)];
  }
}

function of(sample, name) {
  return sample.values.get(`toolwire_${name}`) ?? 0;
}

function memoryNodes(sample) {
  const { memory } = sample;
  if (!memory) return [el("p.caption", {}, "The engine has not reported its memory yet.")];
  const { weight_bytes: weights, activation_bytes: activations, kv_bytes: cache, room_bytes: room, blocks } = memory;
  const rest = Math.max(0, room - weights - activations - cache);
  const parts = [["weights", weights], ["cache", cache], ["activations", activations], ["free of what it may use", rest]];
  const used = [["used", blocks.used], ["reusable", blocks.cached], ["free", blocks.free]];
  const devices = (memory.devices ?? []).map((device) => deviceBar(device));
  return [
    el("h3", {}, "Memory ", el(`span.chip.${memory.level}`, {}, memory.level)),
    bar("Memory of the engine", parts, size),
    bar("Blocks of the cache", used, (count) => `${count} blocks`),
    ...devices,
  ];
}

function deviceBar(device) {
  const own = device.own ?? 0;
  const others = Math.max(0, device.used - own);
  const { utilisation: busy = null, temperature_c: warm = null } = device;
  const parts = [device.name, busy === null ? "" : `${Math.round(busy * 100)} % busy`, warm === null ? "" : `${Math.round(warm)} °C`];
  return bar(parts.filter(Boolean).join(", "), [["engine", own], ["others", others], ["free", device.free]], size);
}

/** Parts of a whole as a bar, with its legend as text. */
function bar(title, parts, show) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  let x = 0;
  const segments = parts.map(([, value], at) => {
    const width = (value / total) * 600;
    x += width;
    return svg("rect", { x: x - width, y: 0, width, height: 16, class: `part part-${at}` });
  });
  const legend = parts.map(([name, value], at) => el("span", {}, el(`span.swatch.part-${at}`, { "aria-hidden": "true" }), `${name} ${show(value)} `));
  const drawing = svg("svg", { viewBox: "0 0 600 16", preserveAspectRatio: "none", "aria-hidden": "true", class: "bar-drawing" }, segments);
  return el("figure", {}, el("figcaption", {}, title), drawing, el("p.legend", {}, legend));
}

function latencyTable({ buckets }) {
  const rows = LATENCIES.map(([title, name]) => {
    const cells = [0.5, 0.95].map((share) => el("td", {}, seconds(quantile(buckets.get(name), share))));
    return el("tr", {}, el("th", { scope: "row" }, title), cells);
  });
  const head = ["latency", "half within", "95 % within"].map((text) => el("th", { scope: "col" }, text));
  return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

function seconds(value) {
  if (value === null) return "–";
  return value === Infinity ? "longer" : value < 1 ? `${+(value * 1000).toFixed(1)} ms` : `${value} s`;
}

function size(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}
