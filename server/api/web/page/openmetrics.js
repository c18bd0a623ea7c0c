/** OpenMetrics text, read as far as the page needs it. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;

/** `{ values, buckets }`: each metric summed over its labels, and the cumulative buckets of each histogram by edge. */
export function readMetrics(text) {
  const values = new Map();
  const buckets = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    const number = Number(value);
    if (name.endsWith("_bucket")) {
      const edge = /(?:^|,)le="([^"]*)"/.exec(labels)?.[1];
      const family = name.slice(0, -"_bucket".length);
      if (!buckets.has(family)) buckets.set(family, new Map());
      const edges = buckets.get(family);
      const at = edge === "+Inf" ? Infinity : Number(edge);
      edges.set(at, (edges.get(at) ?? 0) + number);
    } else values.set(name, (values.get(name) ?? 0) + number);
  }
  return { values, buckets };
}

/** The edge below which this share of the observations lies; null without any. */
export function quantile(buckets, share) {
  const edges = [...(buckets?.entries() ?? [])].sort(([a], [b]) => a - b);
  const total = edges.at(-1)?.[1] ?? 0;
  return total ? edges.find(([, count]) => count >= share * total)[0] : null;
}
