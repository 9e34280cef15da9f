/* Beside the chat: how the server is, and of the shown chat its history, its backups and its states; and the trash. */

import { useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { html } from "./html.js";
import { chat, chatTitle, client, frames, go, isTapping, latencies, relist, tell, turn, write } from "./store.js";

const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const LOOK_MS = 2000;
const COMMITS_MAX = 100;
const BUCKETS_MS = [5, 10, 20, 50, 100, 200, 500, 1000, Infinity];
const VIEWS = { Server, History, Frames, Backups, States, Trash };
const FRAME_SHOWN_UNITS = 2000;

export function Console({ close }) {
  const [view, setView] = useState("Server");
  const View = VIEWS[view];
  const keys = (event) => event.key === "Escape" && close();
  const names = Object.keys(VIEWS);
  const walk = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const name = names[(names.indexOf(view) + by + names.length) % names.length];
    setView(name);
    document.getElementById(`tab-${name}`).focus();
  };
  return html`<aside class="console" aria-label="Console" onKeyDown=${keys}>
    <div class="views"><div role="tablist" aria-label="Console" onKeyDown=${walk}>${names.map((name) => html`<button role="tab" key=${name} class="plain" id=${`tab-${name}`} aria-controls="view" aria-selected=${name === view} tabindex=${name === view ? 0 : -1} onClick=${() => setView(name)}>${name}</button>`)}</div>
      <button class="plain" aria-label="Close the console" onClick=${close}>×</button></div>
    <div class="view" id="view" role="tabpanel" aria-labelledby=${`tab-${view}`} tabindex="0"><${View} key=${view === "Trash" ? view : `${view} ${chat.value?.chatId}`}/></div></aside>`;
}

/** What `read` gives, read again when `when` changes; null before, and an error as a notice. */
function useRead(read, when) {
  const found = useSignal(null);
  useEffect(() => {
    let isWanted = true;
    read().then((value) => isWanted && (found.value = value), (error) => isWanted && tell(error.reason ?? String(error), "bad"));
    return () => (isWanted = false);
  }, when);
  return found.value;
}

const NoChat = () => html`<p class="hint">Open a chat to see this of it.</p>`;

function Server() {
  const [look, again] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && again((count) => count + 1), LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  const found = useRead(async () => {
    try {
      const [status, metrics] = await Promise.all([fetch("/statusz").then((answer) => answer.json()), fetch("/metrics").then((answer) => answer.text())]);
      return { status, metrics: new Map([...metrics.matchAll(/^(tellback_\S+) ([\d.e+-]+)$/gm)].map(([, name, value]) => [name, Number(value)])) };
    } catch {
      return { status: null };
    }
  }, [look]);
  if (!found) return html`<p class="hint">Asking …</p>`;
  if (!found.status) return html`<p class="hint">The server does not answer.</p>`;
  const { status, metrics } = found;
  const metric = (name) => metrics.get(`tellback_${name}`) ?? 0;
  const sync = metrics.get('tellback_log_sync_seconds{quantile="0.5"}');
  const facts = [
    ["Server", status.server], ["Takes writes", status.ready ? "yes" : `no: ${status.state}`], ["Connections", status.connections], ["Chats in memory", status.chats],
    ["Replies being written", metric("generations")], ["Writes", metric("commits_total")], ["Conflicts", metric("conflicts_total")], ["Resent writes", metric("duplicates_total")],
    ["Tabs too slow", metric("behind_total")], ["Log segments", status.log_segments], ["Log waits for the disk", `${metric("log_uncommitted_bytes")} bytes`],
    ["Median sync", sync === undefined ? "–" : `${(1000 * sync).toFixed(1)} ms`], ["Behind in the files", `${status.checkpoint_lag_s.toFixed(1)} s`],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl><${Latency}/>`;
}

function Latency() {
  const taken = latencies.value;
  const counts = BUCKETS_MS.map((max, index) => taken.filter((one) => one <= max && one > (BUCKETS_MS[index - 1] ?? -1)).length);
  const most = Math.max(1, ...counts);
  return html`<h2>From asked to on the disk, this tab's last ${taken.length} writes</h2>
    <table class="bars"><tbody>${BUCKETS_MS.map((max, index) => html`<tr key=${max}><th scope="row">${max === Infinity ? "over 1 s" : `≤ ${max} ms`}</th><td><span class="bar" style=${{ width: `${(100 * counts[index]) / most}%` }}></span></td><td>${counts[index]}</td></tr>`)}</tbody></table>`;
}

function said(effect) {
  switch (effect.op) {
    case "append": return `+ ${effect.messages.map((one) => `${one.name ?? ""}: ${String(one.mes ?? "").slice(0, 60)}`).join(" · ")}`;
    case "insert": return `+ ${effect.messages.length} between`;
    case "patch": return `changed ${effect.patch.map((one) => one.path).join(", ")}`;
    case "delete": return `− ${effect.messages.length} ${effect.messages.length === 1 ? "message" : "messages"}`;
    case "state": case "floor": return `state ${effect.namespace}`;
    default: return effect.op;
  }
}

function History() {
  turn.value;
  const one = chat.value;
  const seq = one?.head.seq;
  const [at, setAt] = useState(null);
  const commits = useRead(async () => (one ? (await one.history(Math.max(0, seq - COMMITS_MAX), COMMITS_MAX)).commits : null), [one, seq]);
  const then = useRead(async () => (one && at !== null ? one.at(at) : null), [one, at]);
  if (!one) return html`<${NoChat}/>`;
  if (!commits) return html`<p class="hint">Reading …</p>`;
  return html`${at !== null && then && html`<${Difference} one=${one} then=${then} at=${at} close=${() => setAt(null)}/>`}
    ${!commits.length && html`<p class="hint">Nothing has changed since the server knows this chat.</p>`}
    <ol class="commits" reversed>${[...commits].reverse().map((commit) => html`<li key=${commit.version.seq}><button class="plain row" aria-pressed=${at === commit.version.seq} onClick=${() => setAt(commit.version.seq)}>
      <b>${commit.version.seq}</b> ${(commit.ops ?? []).map(said).join("; ")}</button></li>`)}</ol>`;
}

function Difference({ one, then, at, close }) {
  const before = new Map(then.messages.map((message) => [message.id, message]));
  const now = new Map(one.messages.map((message) => [message.id, message]));
  const rows = [];
  for (const [id, message] of before) if (now.get(id)?.mes !== message.mes) rows.push([id, message.mes, now.get(id)?.mes]);
  for (const [id, message] of now) if (!before.has(id)) rows.push([id, undefined, message.mes]);
  return html`<section class="then" aria-label=${`The chat as it was at ${at}`}><h2>At ${at}: ${before.size} messages <button class="plain" onClick=${close}>Close</button></h2>
    ${!rows.length && html`<p>As it is now.</p>`}
    ${rows.slice(-20).map(([id, old, current]) => html`<div class="change" key=${id}>${old !== undefined && html`<del>${old}</del>`}${current !== undefined && html`<ins>${current}</ins>`}</div>`)}</section>`;
}

function Frames() {
  const [filter, setFilter] = useState("");
  useEffect(() => {
    isTapping.value = true;
    return () => (isTapping.value = false);
  }, []);
  const words = filter.toLowerCase().split(/\s+/);
  const shown = frames.value.filter((one) => words.every((word) => `${one.direction} ${one.text}`.toLowerCase().includes(word)));
  return html`<input type="search" aria-label="Filter frames" placeholder="Filter, for instance: sent append" value=${filter} onInput=${(event) => setFilter(event.target.value)}/>
    ${!frames.value.length && html`<p class="hint">What this tab sends and receives from now on shows up here.</p>`}
    <ol class="commits">${shown.toReversed().map((one) => html`<li key=${one.id}><details><summary>${one.direction === "sent" ? "→" : "←"} <span class="unseen">${one.direction}</span>${/"type":"([^"]*)"/.exec(one.text)?.[1] ?? "?"} <small>${time.format(one.at)} · ${one.text.length} characters</small></summary>
      <pre tabindex="0">${one.text.slice(0, FRAME_SHOWN_UNITS)}${one.text.length > FRAME_SHOWN_UNITS ? " …" : ""}</pre></details></li>`)}</ol>`;
}

function Backups() {
  const one = chat.value;
  const [look, again] = useState(0);
  const [asked, ask] = useState(null);
  const found = useRead(async () => (one ? one.backups() : null), [one, look]);
  if (!one) return html`<${NoChat}/>`;
  const backUp = async () => {
    if (await write(one.backUp())) tell("Backed up.");
    again(look + 1);
  };
  const beside = async (backup) => {
    const to = one.name.replace(/[^/:]*$/, (name) => `${name} - ${backup.slice(0, 10)}`);
    if (!(await write(one.restoreBackup(backup, { to })))) return;
    await relist();
    go(to);
  };
  return html`<p><button onClick=${backUp}>Back up now</button></p>
    ${found && !found.backups?.length && html`<p class="hint">There is no backup of this chat yet.</p>`}
    <ul class="rows">${(found?.backups ?? []).map((backup) => html`<li key=${backup.backup}><span>${when.format(backup.taken_ms)}<small>${backup.reason} · ${backup.count ?? "?"} messages</small></span>
      <button onClick=${() => beside(backup.backup)}>Beside it</button>
      ${asked === backup.backup ? html`<button class="main" onClick=${() => write(one.restoreBackup(backup.backup)).then(() => (ask(null), again(look + 1)))}>Replace the chat</button>` : html`<button onClick=${() => ask(backup.backup)}>Restore</button>`}</li>`)}</ul>`;
}

function States() {
  turn.value;
  const one = chat.value;
  const found = useRead(async () => (one ? one.states() : null), [one, one?.head.seq]);
  if (!one) return html`<${NoChat}/>`;
  const names = Object.keys(found ?? {}).sort();
  return html`${found && !names.length && html`<p class="hint">No extension has kept a state in this chat.</p>`}
    ${names.map((name) => html`<details key=${name}><summary>${name}${names.includes(`${name}__floor_log`) && html` <small>floor state</small>`}</summary><pre tabindex="0">${JSON.stringify(found[name], null, 2)}</pre></details>`)}`;
}

function Trash() {
  const [look, again] = useState(0);
  const found = useRead(async () => {
    const deleted = [];
    for await (const one of client.listChats({ deleted: true })) deleted.push(one);
    return deleted;
  }, [look]);
  const restore = async (one) => {
    const back = await write(client.restoreChat(one.chat_id));
    again(look + 1);
    await relist();
    if (back) go(back.name.startsWith("id:") ? one.chat : back.name);
  };
  const shown = chat.value;
  return html`${shown && html`<p><button onClick=${() => write(shown.remove()).then(() => again(look + 1))}>Put “${chatTitle(shown.name)}” into the trash</button></p>`}
    ${found && !found.length && html`<p class="hint">The trash holds no chat.</p>`}
    <ul class="rows">${(found ?? []).map((one) => html`<li key=${`${one.chat_id} ${one.deleted_ms}`}><span>${chatTitle(one.chat)}<small>${when.format(one.deleted_ms)}</small></span><button onClick=${() => restore(one)}>Restore</button></li>`)}</ul>`;
}
