/* What the user wants: the thing that outlives a request, so that it can be asked again on a changed chat.

   - An intent given as a function is carried out again on what is there now; it sees only its own document.
   - An intent given as data is repeated only when what it touches is still as it was when it was asked; otherwise it is
     a conflict, for a person to decide.
   - Asking for nothing new makes no request. */

import { refused, type TellbackError } from "./errors.js";
import { newMessageId, ownerNamed } from "./ids.js";
import { difference, type Operation } from "./patch.js";
import { show, type ChatDocument, type Write } from "./replica.js";
import { copy, equal, has, isObject, payload, type Json } from "./values.js";
import type { Writes } from "./writes.js";

export type Updater = (value: any) => any;
export type View = () => ChatDocument;

export interface Intent {
  /** The requests that carry it out on `view`; none when there is nothing to do. Throws `Unfetched` and what cannot be asked. */
  parts(view: View): Write[];
  /** True when it still means the same on `view`. */
  repeatable(view: View): boolean;
  readonly isFunction?: boolean;
  /** Of an earlier tab: only the request is left. */
  readonly isRecorded?: boolean;
}

/** What the intent needs was not asked for yet: `fetch` it, and then it can be carried out. */
export class Unfetched {
  constructor(readonly fetch: (held: Writes, done: (error?: TellbackError) => void) => void) {}
}

const same = (one: any, other: any): boolean => (one === undefined || other === undefined ? one === other : equal(one, other));
const sameMessage = (one: any, other: any): boolean => one !== undefined && same(one, other);

/** What the user's function makes of its own copy. */
export function updated(update: Updater, value: any, pointer: string): any {
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

/** Several intents, all or nothing, as one commit; each sees what those before it did. */
export function batch(intents: readonly Intent[]): Intent {
  return {
    get isFunction() {
      return intents.every((intent) => intent.isFunction);
    },
    parts(view) {
      let draft = view();
      return intents.flatMap((intent) => {
        const mine = intent.parts(() => draft);
        draft = mine.reduce(show, draft);
        return mine;
      });
    },
    repeatable: (view) => intents.every((intent) => intent.repeatable(view)),
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
    // Anything else was refused because what it touches has changed: a person decides.
    repeatable: () => parts.every(({ type }) => type === "append"),
  };
}

/** The frame for some requests to an owner: their own when there is one, a batch otherwise. */
export function toWrite(owner: string, parts: readonly Write[]): Write {
  if (parts.length !== 1) return { type: "batch", chat: owner, requests: parts };
  const [part] = parts as [Write];
  return /^(state|owner)-/.test(part.type) ? { ...part, owner: ownerNamed(owner) } : { ...part, chat: owner };
}

export function requestOf(type: string, change: Change): Write {
  if ("update" in change || "delete" in change) return { type };
  const [[kind, value]] = Object.entries(change) as [[string, Json]];
  return { type, [kind]: payload(value, `/${kind}`) };
}

/** True when everything that a change touches is in `now` as it was in `seen`. */
export function sameFor(change: Change, seen: any, now: any): boolean {
  return "merge" in change ? sameWhereMerged(seen, now, change.merge) : same(seen, now);
}

function sameWhereMerged(seen: any, now: any, merge: any): boolean {
  if (!isObject(merge) || !isObject(seen) || !isObject(now)) return same(seen, now);
  return Object.entries(merge).every(([member, wanted]) => {
    if (!has(seen, member) || !has(now, member)) return has(seen, member) === has(now, member);
    return isObject(wanted) ? sameWhereMerged(seen[member], now[member], wanted) : same(seen[member], now[member]);
  });
}
