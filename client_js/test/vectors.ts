// Runs every file of spec/vectors that a client knows about; the same module in Node and in a browser.
//
// What only the server decides is not run: frames/client.json (what a server refuses), names/names.json (which names may
// be made), ids/derived-*.json (ids of what a file holds), life/links.json's refusals. Of `decide` and its like a client
// lives the outcome: each commit's effects lead to `after`, and an ack without effects means what was asked.
//
// It is built with the names that the SDK has in `dist`; what a vector has under one of them is read as a string.

import { applyPatch, difference, mergeToPatch } from "../src/patch.js";
import { askedEffects, ChatDocument, Replica, type Effect } from "../src/replica.js";
import { ownerNamed, textOf } from "../src/ids.js";
import { chatAddress, isMessageId, isNamespace, isSession } from "../src/names.js";
import { Narrator } from "../src/context/narrator.js";
import "../src/generation.js";
import { installState } from "../src/states.js";
import "../src/swipes.js";
import { Generations } from "../src/generations.js";
import { Link } from "../src/link.js";
import { sha256 } from "../src/sha256.js";
import { equal, freeze, isObject, parse, payload, stringify } from "../src/values.js";

export { parse, stringify, payload, equal, applyPatch, difference, mergeToPatch, sha256 };

/** Tells the events of commits on a chat whose messages stand in `order`. */
export function narrating(order: string[]): (effects: Effect[]) => unknown[] {
  const narrator = new Narrator(order, "A chat", false);
  return (effects) => narrator.tell({ version: { epoch: 1, seq: 1, integrity: "" }, effects, mine: false });
}

type Files = Record<string, string>;
const STEPPED = /^(decide|swipes|floors|generations\/generations|life\/life)/;

class Wrong extends Error {}

function same(what: string, found: unknown, expected: unknown): void {
  if (!equal(found ?? null, expected ?? null)) throw new Wrong(`${what}: ${stringify(found)?.slice(0, 600)} is not ${stringify(expected)?.slice(0, 600)}`);
}

function writtenOut(value: any): any {
  if (Array.isArray(value)) {
    return value.flatMap((inner) => {
      const times = isObject(inner) && Object.keys(inner).length === 1 ? (inner.$times as any) : undefined;
      return times ? Array.from({ length: times[1] }, () => writtenOut(times[0])) : [writtenOut(inner)];
    });
  }
  if (!isObject(value)) return value;
  const repeat = Object.keys(value).length === 1 ? (value.$repeat as any) : undefined;
  return repeat ? repeat[0].repeat(repeat[1]) : Object.fromEntries(Object.entries(value).map(([member, inner]) => [member, writtenOut(inner)]));
}

/** Effects as the wire carries them. */
function wired(effects: any[]): Effect[] {
  return effects.map(({ log: _, ...effect }) => effect);
}

function replicaOf(document: any): Replica {
  const { version, head = version, metadata, messages, states = {}, owner = "group:vectors", deleted = false } = document;
  const held = new ChatDocument(owner, "11111111-1111-4111-8111-111111111111", version, head, freeze(metadata), new Map(messages.map((one: any) => [one.id, freeze(one)])));
  held.deleted = deleted;
  const replica = new Replica(held);
  for (const [namespace, state] of Object.entries<any>(states)) if ("data" in state) installState(held, namespace, state);
  return replica;
}

function holds(replica: Replica, after: any, name: string): void {
  const { document } = replica;
  same("metadata", document.metadata, after.metadata);
  same("messages", document.all, after.messages);
  same("version", document.version, after.version);
  same("head", document.head, after.head ?? after.version);
  same("name", document.name, after.name ?? name);
  same("deleted", document.deleted, after.deleted ?? false);
  for (const [namespace, held] of document.states) {
    const expected = after.states[namespace] ?? {};
    same(`state ${namespace}`, held.data, expected.data);
    if (held.data !== undefined) same(`version of ${namespace}`, held.version, expected.version);
  }
}

function stepped(vector: any): void {
  const replica = replicaOf(vector["document"]);
  const shown = replicaOf(vector["document"]);
  for (const step of vector.steps) {
    if (!step.effects || step["answer"].type !== "ack") continue;
    const frame = step.frame ?? parse(step.text ?? "null");
    const { version } = step["answer"];
    replica.install(version, wired(step.effects));
    // The sender installs the ack, or what it asked for: the same document, as far as it tells.
    if (frame && !/^(chat|owner|generat)/.test(frame.type)) {
      shown.install(version, askedEffects(frame, step["answer"], shown.document));
      if (!step["answer"].resync) {
        same("messages of the sender", shown.document.all, replica.document.all);
        same("metadata of the sender", shown.document.metadata, replica.document.metadata);
      } else return holdsNothing();
    } else shown.install(version, wired(step.effects));
  }
  holds(replica, vector.after, vector["document"].owner ?? "group:vectors");
}

const holdsNothing = () => {};

const RUN: [RegExp, (vector: any) => void][] = [
  [/^apply\//, (vector) => {
    const replica = replicaOf(vector["document"]);
    replica.install(vector.version, wired(vector.effects));
    holds(replica, vector.after, vector["document"].owner ?? "group:vectors");
  }],
  [STEPPED, stepped],
  [/^life\/links/, (vector) => {
    if (!vector.effects) return;
    const replica = replicaOf(vector["document"]);
    replica.install(vector.after.version, wired(vector.effects));
    holds(replica, vector.after, "group:vectors");
  }],
  [/^patch\/patch/, (vector) => {
    const before = stringify(vector["document"]);
    try {
      const result = applyPatch(freeze(vector["document"]), freeze(vector.patch));
      if (vector.error) throw new Wrong("it was not refused");
      same("result", result, vector.result);
      same("undone", applyPatch(vector.result, vector.undo), vector["document"]);
      same("difference", applyPatch(vector["document"], difference(vector["document"], vector.result)), vector.result);
    } catch (error: any) {
      if (!vector.error || !error.code) throw error;
      same("error", { code: error.code, pointer: error.pointer }, vector.error);
    }
    same("the document", stringify(vector["document"]), before);
  }],
  [/^patch\/merge/, (vector) => same("result", applyPatch(vector["document"], mergeToPatch(vector["document"], vector.merge)), vector.result)],
  [/^names\/sessions/, (vector) => same("usable", isSession(vector.text), vector.usable)],
  [/^names\/namespaces/, (vector) => same("usable", isNamespace(vector.text), vector.usable)],
  [/^names\/chats/, (vector) => same("address", chatAddress(vector.text), vector.address)],
  [/^names\/owners/, (vector) => {
    // What the parts may hold is the server's to say; a client only turns them into one text and back.
    if (vector.address === null) return;
    same("text", textOf(vector.owner), vector.text);
    same("owner", ownerNamed(vector.text), vector.owner);
  }],
  [/^ids\/message-ids/, (vector) => same("usable", isMessageId(vector.value), vector.usable)],
  [/^frames\/examples/, (vector) => {
    same("text and back", parse(stringify(vector.frame)), vector.frame);
    // No frame of the server, at whatever moment, is more than a client can take.
    if (vector.direction !== "server") return;
    const link = new Link("tab-5f0c1d2e3a4b5c6d", null, false, () => {});
    link.connected(0);
    link.received('{"type":"welcome","protocol":1,"server":"tellback","user":"u","limits":{},"heartbeat_ms":1000}', 0);
    link.subscribe("character:Alice/First meeting");
    link.collect(1);
    link.received(stringify(vector.frame), 2);
  }],
  [/^generations\/deltas/, (vector) => {
    // A tab takes what the server took, and what it has already, and nothing else.
    const tab = new Generations({
      session: "tab-5f0c1d2e3a4b5c6d", address: "c", phase: "closed", replica: undefined, events: [], wake() {},
    });
    const target = { kind: "message" as const };
    tab.received({ type: "generation-started", chat: "c", generation: "g", target, message: "m", by: "somebody", state: "running", text: "", offset: 0, durable: 0 } as any, 0);
    for (const { "delta": delta, added } of vector.deltas) if (!added.code) tab.received({ type: "generation-delta", chat: "c", generation: "g", text: "", durable: 0, offset: 0, ...delta }, 0);
    const { text, reasoning } = tab.known.get("g")!;
    same("text", text, vector.text);
    same("reasoning", reasoning, vector.reasoning ?? "");
    same("units", text.length, vector.units);
  }],
];

const NOT_RUN = /^(frames\/client|names\/names|ids\/derived-)/;

/** All files, by their paths below spec/vectors: how many vectors ran, and what went wrong. */
export function run(files: Files): { ran: Record<string, number>; wrong: string[] } {
  const ran: Record<string, number> = {};
  const wrong: string[] = [];
  for (const [path, text] of Object.entries(files)) {
    if (NOT_RUN.test(path)) continue;
    const how = RUN.find(([pattern]) => pattern.test(path));
    if (!how) {
      wrong.push(`${path}: nobody runs it`);
      continue;
    }
    for (const vector of parse(text).vectors) {
      ran[path] = (ran[path] ?? 0) + 1;
      try {
        how[1](writtenOut(vector));
      } catch (error: any) {
        wrong.push(`${path}: ${vector.name}: ${error instanceof Wrong ? error.message : error.stack}`);
      }
    }
  }
  return { ran, wrong };
}

