/* What extensions ask for as data: fields merged into a message or the metadata, and reducers of state.

   - Data is asked for again only while the fields it names are as they were seen; otherwise it is a conflict. Fields that
     it does not name belong to whoever changes them. */

import { difference, inner } from "../index.js";
import type { Intent } from "../intents.js";
import { documentIn, state } from "../states.js";

const { equal, isObject, payload, refused } = inner;

/** Objects merged at every depth; everything else takes the place of what was there. */
function merged(old: any, patch: any): any {
  if (!isObject(patch) || !isObject(old)) return patch;
  return { ...old, ...Object.fromEntries(Object.entries(patch).map(([member, value]) => [member, merged(Object.hasOwn(old, member) ? old[member] : undefined, value)])) };
}

/** True when everything that `patch` would change is now as it was seen. */
function sameWhere(seen: any, now: any, patch: any, deep: boolean): boolean {
  if (isObject(patch) && isObject(seen) && isObject(now)) {
    return Object.entries(patch).every(([member, value]) => {
      if (!Object.hasOwn(seen, member) || !Object.hasOwn(now, member)) return Object.hasOwn(seen, member) === Object.hasOwn(now, member);
      return sameWhere(seen[member], now[member], deep ? value : null, deep);
    });
  }
  return seen === now || equal(seen, now);
}

/** Fields merged into one message. */
export function mergeMessage(message: string, patch: object, deep: boolean): Intent {
  const stored = payload(patch, "/patch");
  let seen: any;
  return {
    isFunction: true,
    parts(view) {
      seen = view().messages.get(message);
      if (!seen) throw refused("message-unknown", `The chat has no message ${message}.`, "/message");
      const operations = difference(seen, deep ? merged(seen, stored) : { ...seen, ...stored });
      return operations.length ? [{ type: "patch", message, patch: operations }] : [];
    },
    repeatable(view) {
      const now = view().messages.get(message);
      return now !== undefined && sameWhere(seen, now, stored, deep);
    },
  };
}

/** Top-level members of the metadata, each replaced as a whole. */
export function assignMetadata(members: object): Intent {
  const stored = payload(members, "/metadata");
  let seen: any;
  return {
    isFunction: true,
    parts(view) {
      seen = view().metadata;
      const operations = difference(seen, { ...seen, ...stored });
      return operations.length ? [{ type: "metadata-update", patch: operations }] : [];
    },
    repeatable: (view) => sameWhere(seen, view().metadata, stored, false),
  };
}

/** A function from a state document to the next; null and undefined mean unchanged. `told.state` is what it came to. */
export function reduceState(namespace: string, reducer: (current: any, attempt: number) => any, maxRetries: number, told: { state?: any }): Intent {
  let retries = 0;
  return {
    isFunction: true,
    parts(view) {
      const document = documentIn(view(), namespace);
      const next = reducer(structuredClone(document.data ?? {}), retries);
      if (typeof next?.then === "function") throw new TypeError("an updater is not asynchronous: it is run again whenever somebody was faster");
      told.state = structuredClone(next ?? document.data ?? null);
      return next === null || next === undefined ? [] : state(namespace, { update: () => next }).parts(view);
    },
    repeatable: () => ++retries <= maxRetries,
  };
}
