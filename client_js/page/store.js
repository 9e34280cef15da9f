/* What the page knows: one client, the chats listed, the chat shown. Components read signals and call the verbs below.

   - The SDK's replica is the truth; `turn` only says that it has another face now.
   - Chats stay open behind the shown one, up to OPEN_MAX, so that going back to one shows it at once. */

import { batch, signal } from "@preact/signals";
import { serverAddress } from "./address.js";
import { connect } from "./sdk.js";
import { TappedSocket } from "./tap.js";

const OPEN_MAX = 6;
const NOTICE_MS = 8000;
const LATENCIES_MAX = 500;
const RELIST_MS = 15_000;
const SAMPLE = "*She looks at the clock above the door, then at you.* \"It stopped in 1911. We run by it all the same.\" The lamps go out one carriage at a time, and somewhere behind you a very small bell begins to ring.".split(/(?<= )/);

export const connection = signal("connecting");
export const trouble = signal(null);
export const listing = signal({ characters: [], groups: [], chats: [], isLoaded: false });
export const chat = signal(null);
export const opening = signal(null);
export const turn = signal(0);
export const notices = signal([]);
export const conflict = signal(null);
export const announced = signal("");
/** Own writes without an answer, in all chats. */
export const pending = signal(0);
/** How long this tab's last writes took, in ms. */
export const latencies = signal([]);
export const isConsoleOpen = signal(false);
/** Counts own messages: each scrolls the list to its end. */
export const sent = signal(0);

export let client = null;
const held = new Map();
let relisting;
let ticking;
let noticed = 0;

export async function start(token = sessionStorage.getItem("tellback token")) {
  try {
    client = await connect(serverAddress(), { connectTimeoutMs: 0, WebSocket: TappedSocket, ...(token ? { token } : {}) });
    for (const name of ["connection", "changed"]) client.on(name, () => step());
    client.on("changed", tellLeft);
    step();
    await client.connected();
    trouble.value = null;
  } catch (error) {
    trouble.value = error;
    return;
  }
  if (token) sessionStorage.setItem("tellback token", token);
  await relist();
  clearInterval(ticking);
  ticking = setInterval(() => document.visibilityState === "visible" && connection.value === "connected" && relist(), RELIST_MS);
  addEventListener("hashchange", route);
  route();
}

export function signOut() {
  sessionStorage.removeItem("tellback token");
  location.reload();
}

/** Something happened to the client or to a chat. */
function step() {
  batch(() => {
    connection.value = client.status;
    pending.value = client.pending;
    conflict.value = client.conflicts.find((one) => one.handle) ?? null;
    if (client.status === "closed") trouble.value = client.error ?? null;
    turn.value++;
  });
}

/** What a tab that died wrote to a chat that is gone. */
async function tellLeft() {
  if (client.pending || client.conflicts.length) return;
  try {
    await client.saved();
  } catch (error) {
    if (!client.conflicts.length && !client.error) tell(`What a closed tab wrote stays in this browser until its chat is back: ${error.reason}`, "bad");
  }
}

export async function all(items) {
  const found = [];
  for await (const one of items) found.push(one);
  return found;
}

export async function relist() {
  clearTimeout(relisting);
  try {
    const [characters, groups, chats] = await Promise.all([all(client.characters()), all(client.groups()), all(client.listChats())]);
    listing.value = { characters, groups, chats, isLoaded: true };
  } catch (error) {
    tell(`The list could not be read: ${error.reason ?? error}`, "bad");
  }
}

function relistSoon() {
  clearTimeout(relisting);
  relisting = setTimeout(relist, 700);
}

function route() {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name) void show(name);
}

export function go(name) {
  if (location.hash.slice(1) === encodeURIComponent(name)) void show(name);
  else location.hash = encodeURIComponent(name);
}

async function show(name) {
  opening.value = name;
  try {
    const found = await client.open(name);
    hold(found);
    if (opening.value === name) chat.value = found;
    step();
  } catch (error) {
    tell(`${chatTitle(name)} cannot be opened: ${error.reason ?? error}`, "bad");
  } finally {
    if (opening.value === name) opening.value = null;
  }
}

/** Back to the list; the chat stays open behind it. */
export function leave() {
  chat.value = null;
  history.replaceState(null, "", location.pathname);
}

function hold(one) {
  const known = held.has(one);
  held.delete(one);
  held.set(one, true);
  if (!known) listen(one);
  for (const old of held.keys()) {
    if (held.size <= OPEN_MAX) break;
    if (old === one || old.pending || old.conflicts.length) continue;
    held.delete(old);
    old.close().catch(() => {});
  }
}

function listen(one) {
  const title = () => chatTitle(one.name);
  for (const name of ["changed", "status", "generation-text", "generation-started", "generation-ended", "conflicted"]) one.on(name, step);
  one.on("committed", ({ mine, effects }) => {
    relistSoon();
    if (mine || chat.value !== one) return;
    for (const effect of effects) {
      if (effect.op === "append") for (const { name, mes } of effect.messages) announced.value = `${name ?? "Somebody"} says: ${mes}`;
      if (effect.op === "delete") announced.value = "A message was deleted elsewhere.";
    }
  });
  one.on("replaced", ({ reason, recovered }) => {
    const why = { "outside-edit": "Another program changed this chat's file; what you see is the file.", restored: "This chat was restored from a backup.",
      failed: "The server had to read this chat again.", trimmed: "You were away for long: the chat was fetched whole." }[reason];
    if (why) tell(`${title()}: ${why}${recovered.length ? ` What was here before is kept as ${recovered.join(", ")}.` : ""}`);
    relistSoon();
    step();
  });
  one.on("behind", () => tell(`${title()}: this tab was too slow for what came; it is catching up.`));
  one.on("generation-ended", ({ result }) => result.state === "failed" && tell(`${title()}: the reply ended early. ${result.error?.message ?? ""}`, "bad"));
  one.on("renamed", ({ to }) => {
    tell(`The chat is called ${chatTitle(to)} now.`);
    relistSoon();
  });
  const over = (sentence) => {
    held.delete(one);
    if (chat.value === one) leave();
    tell(sentence);
    relistSoon();
    step();
  };
  one.on("deleted", () => over(`${title()} was put into the trash.`));
  one.on("gone", ({ message }) => over(`${title()}: ${message}`));
}

export function tell(text, kind = "") {
  const id = ++noticed;
  notices.value = [...notices.value, { id, text, kind }];
  setTimeout(() => dismiss(id), NOTICE_MS);
}

export function dismiss(id) {
  notices.value = notices.value.filter((one) => one.id !== id);
}

/** A write of the user: what the server refuses becomes a notice; a conflict has its own dialogue. */
export async function write(promise) {
  step();
  const asked = performance.now();
  try {
    const result = await promise;
    latencies.value = [...latencies.value.slice(1 - LATENCIES_MAX), performance.now() - asked];
    return result;
  } catch (error) {
    if (error.code !== "conflict") tell(error.reason ?? String(error), "bad");
    return undefined;
  } finally {
    step();
  }
}

// -- the verbs

export async function restoreFrom(one, backup) {
  if (await write(one.restoreBackup(backup))) await relist();
}

/** As the last own message was signed. */
export function userName(one) {
  return one.messages.findLast((message) => message.is_user)?.name ?? "You";
}

export function replyName(one) {
  return one.messages.findLast((message) => !message.is_user && !message.is_system)?.name ?? chatOwner(one.name) ?? "Reply";
}

export function say(one, text) {
  sent.value++;
  return write(one.append({ name: userName(one), is_user: true, is_system: false, send_date: new Date().toISOString(), mes: text, extra: {} }));
}

export const editText = (one, id, text) => write(one.patch(id, [{ op: "replace", path: "/mes", value: text }]));
export const removeMessage = (one, id) => write(one.delete(id));
export const addSwipe = (one, id, text) => write(one.swipeAdd(id, text));

export function swipeBy(one, message, by) {
  const at = (message.swipe_id ?? 0) + by;
  return at < 0 || at >= (message.swipes?.length ?? 1) ? undefined : write(one.swipeSelect(message.id, at));
}

export async function branch(one, id) {
  const made = await write(one.branch(id));
  if (!made) return;
  tell(`Branched: everything up to that message, in ${chatTitle(made.name)}.`);
  await relist();
  go(made.name);
}

export async function makeChat(owner, name) {
  const address = owner.group ? `group:${name}` : `character:${owner.character}/${name}`;
  const made = await write(client.createChat(address, { metadata: {}, ...(owner.group ? { group: owner.group } : {}) }));
  if (!made) return false;
  await relist();
  go(address);
  return true;
}

/** Ask a model server; without one, this tab writes a sample. */
export async function generate(one) {
  const reply = { name: replyName(one), is_user: false, is_system: false, send_date: new Date().toISOString(), extra: {} };
  sent.value++;
  const [upstream] = client.upstreams;
  if (upstream) {
    const said = one.messages.filter((message) => !message.is_system).map((message) => ({ role: message.is_user ? "user" : "assistant", content: message.mes }));
    await write(one.generateFrom(upstream.name, { messages: said }, [], { reply }));
    return;
  }
  const producing = await write(one.generate([], { reply }));
  if (!producing) return;
  try {
    for (const piece of SAMPLE) {
      producing.push(piece);
      step();
      await new Promise((resolve) => setTimeout(resolve, 180));
    }
    await producing.end();
  } catch (error) {
    if (error.code !== "generation-over") tell(error.reason ?? String(error), "bad");
  }
  step();
}

export const running = (one) => one.generations.filter((generation) => generation.state === "running");
export const stop = (generation) => write(generation.cancel());

// -- names

export function chatTitle(address) {
  return address.replace(/^group:|^character:[^/]*\//, "");
}

export function chatOwner(address) {
  return /^character:([^/]*)\//.exec(address)?.[1] ?? null;
}
