/* How the server is: what everybody may know of it, and how long its disk and this tab's writes take. */

import { Histogram, usePolled } from "./console_parts.js";
import { bytes, duration } from "./format.js";
import { html } from "./html.js";
import { client, latencies } from "./store.js";

const BOUNDS_MS = [5, 10, 20, 50, 100, 200, 500, 1000];

async function look() {
  const [status, metrics, { log }] = await Promise.all([
    fetch("/statusz").then((answer) => answer.json()), fetch("/metrics").then((answer) => answer.text()), client.serverStatus(1),
  ]);
  return { status, log, metrics: new Map([...metrics.matchAll(/^(tellback_\S+) ([\d.e+-]+)$/gm)].map(([, name, value]) => [name, Number(value)])) };
}

export function Server() {
  const found = usePolled(look);
  if (!found) return html`<p class="hint">Asking …</p>`;
  if (!found.value) return html`<p class="hint">The server does not answer.</p>`;
  const { status, log, metrics } = found.value;
  const metric = (name) => metrics.get(`tellback_${name}`) ?? 0;
  const facts = [
    ["Server", status.server], ["Takes writes", status.ready ? "yes" : `no: ${status.state || "the disk or a store"}`], ["Connections", status.connections], ["Chats in memory", status.chats],
    ["Replies being written", metric("generations")], ["Writes", metric("commits_total")], ["Conflicts", metric("conflicts_total")], ["Resent writes", metric("duplicates_total")],
    ["Tabs too slow", metric("behind_total")], ["Log segments", status.log_segments], ["Waits for the disk", `${bytes(log.waiting_bytes)}, ${log.waiting_answers} answers`],
    ["Disk has not answered for", duration(log.stalled_ms)], ["Files behind the log", duration(log.checkpoint_lag_ms)],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <h2>The log's last ${log.sync_counts.reduce((sum, count) => sum + count, 0)} syncs to the disk</h2><${Histogram} bounds=${log.sync_bounds_ms} counts=${log.sync_counts}/>
    <${Latency}/>`;
}

function Latency() {
  const taken = latencies.value;
  const counts = [...BOUNDS_MS, Infinity].map((max, index) => taken.filter((one) => one <= max && one > (BOUNDS_MS[index - 1] ?? -1)).length);
  return html`<h2>From asked to on the disk, this tab's last ${taken.length} writes</h2><${Histogram} bounds=${BOUNDS_MS} counts=${counts}/>`;
}
