/* What the user wants: the thing that outlives a request, so that it can be asked again on a changed chat.

   - An intent given as a function is carried out again on what is there now; it sees only its own document.
   - An intent given as data is repeated only when what it touches is still as it was when it was asked; otherwise it is
     a conflict, for a person to decide.
   - Asking for nothing new makes no request. */

import { refused } from "./errors.js";
import { newMessageId, ownerNamed } from "./ids.js";
import { difference, type Operation } from "./patch.js";
import { overlap, show, targetsTouched, type ChatDocument, type Effect, type Write } from "./replica.js";
import { copy, equal, has, isObject, payload, type Json } from "./values.js";

export type Updater = (value: any) => any;
export type View = () => ChatDocument;

export interface Intent {
  /** The requests that carry it out on `view`; none when there is nothing to do. Throws `Unfetched` and what cannot be asked. */
  parts(view: View): Write[];
  /** True when it still means the same on `view`. `missed` are the effects since, when they are known. */
  repeatable(view: View, missed?: readonly Effect[]): boolean;
  readonly isFunction?: boolean;
  /** Of an earlier tab: only the request is left. */
  readonly isRecorded?: boolean;
}

/** The state document was not asked for yet; ask, and then the intent can be carried out. */
export class Unfetched {
  constructor(readonly namespace: string) {}
}

const same = (one: any, other: any): boolean => (one === undefined || other === undefined ? one === other : equal(one, other));
const sameMessage = (one: any, other: any): boolean => one !== undefined && same(one, other);

/** What the user's function makes of its own copy. */
function updated(update: Updater, value: any, pointer: string): any {
  const mine = copy(value);
  const result = update(mine);
  return payload(result === undefined ? mine : result, pointer);
}

export function append(messages: readonly object[]): Intent {
  const stored = messages.map((message, index) => payload(has(message, "id") ? message : { id: newMessageId(), ...message }, `/messages/${index}`));
  return { parts: () => (stored.length ? [{ type: "append", messages: stored }] : []), repeatable: () => true };
}

export function patch(message: string | null, operations: readonly Operation[]): Intent {
  const stored = payload(operations, "/patch");
  let seen: any;
  return {
    parts(view) {
      seen = message === null ? undefined : view().messages.get(message);
      return [message === null ? { type: "patch", patch: stored } : { type: "patch", message, patch: stored }];
    },
    // Operations on the whole chat name messages by index; any change may have moved them.
    repeatable: (view) => message !== null && sameMessage(seen, view().messages.get(message)),
  };
}

export function updateMessage(message: string, update: Updater): Intent {
  return {
    isFunction: true,
    parts(view) {
      const old = view().messages.get(message);
      if (!old) throw refused("message-unknown", `The chat has no message ${message}.`, "/message");
      const operations = difference(old, updated(update, old, "/message"));
      return operations.length ? [{ type: "patch", message, patch: operations }] : [];
    },
    repeatable: () => true,
  };
}

export function remove(messages: readonly string[]): Intent {
  let seen: any[] = [];
  const now = (view: View) => messages.map((id) => view().messages.get(id));
  return {
    parts(view) {
      seen = now(view);
      return messages.length ? [{ type: "delete", messages: [...messages] }] : [];
    },
    repeatable: (view) => now(view).every((message, index) => sameMessage(seen[index], message)),
  };
}

export function swipe(message: string, request: { action: "add" | "select" | "delete"; swipe?: number; content?: object; select?: boolean }): Intent {
  const stored: Write = payload({ type: "swipe", message, ...request }, "");
  let seen: any;
  return {
    parts(view) {
      if (request.swipe !== undefined && !(request.swipe >= 0)) throw refused("swipe-unknown", `There is no swipe ${request.swipe}.`, "/swipe");
      seen = view().messages.get(message);
      return [stored];
    },
    repeatable(view) {
      const now = view().messages.get(message);
      // One more swipe goes behind whatever is there; an ordinal means another swipe when the message has changed.
      return now !== undefined && (request.action === "add" || sameMessage(seen, now));
    },
  };
}

export type Change = { update: Updater } | { set: any } | { merge: object } | { patch: readonly Operation[] } | { delete: true };

export function metadata(change: Change): Intent {
  const request = requestOf("metadata-update", change);
  let seen: any;
  return {
    isFunction: "update" in change,
    parts(view) {
      seen = view().metadata;
      if (!("update" in change)) return [request];
      const operations = difference(seen, updated(change.update, seen, "/metadata"));
      // The function saw all of the metadata, so all of it is what must not have changed.
      return operations.length ? [{ type: "metadata-update", patch: [{ op: "test", path: "", value: seen }, ...operations] }] : [];
    },
    repeatable: (view) => "update" in change || sameFor(change, seen, view().metadata),
  };
}

export function state(namespace: string, change: Change): Intent {
  const request: Write = { ...requestOf("delete" in change ? "state-delete" : "state-update", change), namespace };
  let seen: any;
  return {
    isFunction: "update" in change,
    parts(view) {
      const document = view().states.get(namespace);
      if (!document) throw new Unfetched(namespace);
      seen = document.data;
      if ("delete" in change) return seen === undefined ? [] : [request];
      if (!("update" in change)) return [request];
      const wanted = updated(change.update, seen ?? {}, "/set");
      const operations = seen === undefined ? undefined : difference(seen, wanted);
      if (operations && !operations.length) return [];
      const isSmaller = operations && JSON.stringify(operations, big).length < JSON.stringify(wanted, big).length;
      return [{ ...request, ...(isSmaller ? { patch: operations } : { set: wanted }) }];
    },
    repeatable(view) {
      const document = view().states.get(namespace);
      return "update" in change || (document !== undefined && sameFor(change, seen, document.data));
    },
  };
}

const big = (_member: string, value: unknown) => (typeof value === "bigint" ? `${value}` : value);

/** Several intents, all or nothing, as one commit; each sees what those before it did. */
export function batch(intents: readonly Intent[]): Intent {
  return {
    get isFunction() {
      return intents.every((intent) => intent.isFunction);
    },
    parts(view) {
      const draft = view().copy();
      return intents.flatMap((intent) => {
        const mine = intent.parts(() => draft);
        for (const part of mine) show(draft, part);
        return mine;
      });
    },
    repeatable: (view, missed) => intents.every((intent) => intent.repeatable(view, missed)),
  };
}

/** What is asked of an open owner as a whole, or of a reply; asked once, unless `again` says that it still means the same. */
export const live = (write: Write, again: Intent["repeatable"] = () => false): Intent => ({ parts: () => [write], repeatable: again });

/** A write that an earlier tab left behind: only the request is left of what was wanted. */
export function recorded(write: Write): Intent {
  const { id: _id, op: _op, chat: _chat, owner: _owner, base: _base, on_conflict: _on, ...rest } = write;
  const parts: Write[] = (rest.type === "batch" ? rest.requests : [rest]).map(({ base: _, ...part }: any) => part);
  return {
    isRecorded: true,
    parts: () => parts,
    /** Appends always; patches and deletions of messages when it is known that nobody touched them. */
    repeatable(_view, missed) {
      if (parts.every((part) => part.type === "append")) return true;
      if (!missed) return false;
      const mine = parts.flatMap((part) =>
        part.type === "append" ? ["a"] : part.type === "patch" && part.message !== undefined ? [`m:${part.message}`]
          : part.type === "delete" ? part.messages.map((id: string) => `m:${id}`) : ["?"]);
      return !mine.includes("?") && !mine.some((one) => targetsTouched(missed).some((other) => overlap(one, other)));
    },
  };
}

/** The frame for some requests to an owner: their own when there is one, a batch otherwise. */
export function toWrite(owner: string, parts: readonly Write[]): Write {
  if (parts.length !== 1) return { type: "batch", chat: owner, requests: parts };
  const [part] = parts as [Write];
  return /^(state|owner)-/.test(part.type) ? { ...part, owner: ownerNamed(owner) } : { ...part, chat: owner };
}

function requestOf(type: string, change: Change): Write {
  if ("update" in change || "delete" in change) return { type };
  const [[kind, value]] = Object.entries(change) as [[string, Json]];
  return { type, [kind]: payload(value, `/${kind}`) };
}

/** True when everything that a change touches is in `now` as it was in `seen`. */
function sameFor(change: Change, seen: any, now: any): boolean {
  return "merge" in change ? sameWhereMerged(seen, now, change.merge) : same(seen, now);
}

function sameWhereMerged(seen: any, now: any, merge: any): boolean {
  if (!isObject(merge) || !isObject(seen) || !isObject(now)) return same(seen, now);
  return Object.entries(merge).every(([member, wanted]) => {
    if (!has(seen, member) || !has(now, member)) return has(seen, member) === has(now, member);
    return isObject(wanted) ? sameWhereMerged(seen[member], now[member], wanted) : same(seen[member], now[member]);
  });
}
