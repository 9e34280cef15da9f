/* Floor states: state documents that follow the messages and swipes of a chat.

   - A reducer runs here, on a copy, and again when somebody was faster.
   - What a floor state becomes when messages or swipes change is worked out by the server, in the same commit.

   Loading it gives chats and batches `floorState`; it is `tellback/floors`. */

import type { SkippedCommit } from "./frames.js";
import { Batch, Chat, difference, inner, type Operation } from "./index.js";
import type { Intent, Updater } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import { documentIn, state } from "./states.js";

const { equal, isObject, payload, refused } = inner;

/** The message (its index) and swipe that a change is kept with; without them the last message and the swipe shown. */
export interface FloorPlace {
  floor?: number;
  swipe?: number;
}

/** @internal */
export function floor(namespace: string, change: { update: Updater } | { patch: readonly Operation[] }, at: { floor?: number; swipe?: number } = {}): Intent {
  const stored = "patch" in change ? payload(change.patch, "/patch") : undefined;
  let seen: any;
  return {
    isFunction: "update" in change,
    parts(view) {
      const all = view().all;
      for (const [member, value] of Object.entries(at)) {
        if (value !== undefined && !(Number.isInteger(value) && value >= 0)) throw refused("bad-frame", `${member} is an integer from 0.`, `/at/${member}`);
      }
      if (!all.length || (at.floor !== undefined && at.floor >= all.length)) throw refused("message-unknown", "The chat has no message that this could belong to.", "/at");
      seen = documentIn(view(), namespace).data ?? {};
      let operations = stored;
      if ("update" in change) {
        const wanted = change.update(structuredClone(seen));
        if (!isObject(wanted)) return [];
        operations = difference(seen, payload(wanted, "/patch"));
        if (operations.length > 10_000) operations = [{ op: "replace", path: "", value: wanted }];
      }
      const target = { ...(at.floor === undefined ? {} : { message: all[at.floor]!.id }), ...(at.swipe === undefined ? {} : { swipe: at.swipe }) };
      return operations.length ? [{ type: "floor-update", namespace, patch: operations, ...(Object.keys(target).length ? { at: target } : {}) }] : [];
    },
    repeatable: (view) => "update" in change || equal(seen, view().states.get(namespace)?.data ?? {}),
  };
}

export class FloorVerbs<Done> {
  readonly namespace: string;

  constructor(namespace: string, protected readonly act: (make: () => Intent) => Done) {
    this.namespace = namespace.trim().toLowerCase();
  }

  /** Change the state by a function of it; anything but an object is no change. */
  update(reducer: Updater, at: FloorPlace = {}): Done {
    return this.act(() => floor(this.namespace, { update: reducer }, at));
  }

  patch(operations: readonly Operation[], at: FloorPlace = {}): Done {
    return this.act(() => floor(this.namespace, { patch: operations }, at));
  }
}

export class FloorState extends FloorVerbs<Promise<WriteResult>> {
  constructor(private readonly chat: Chat, namespace: string) {
    super(namespace, async (make) => chat.write(make()));
  }

  /** The state with the own writes on top, a copy; undefined when there is none. */
  get(): Promise<any> {
    return this.chat.state(this.namespace).get();
  }

  /** Take the state and everything it was made of away. */
  delete(): Promise<WriteResult> {
    return this.act(() => state(this.namespace, { delete: true }));
  }

  /** Commits that are shown and do not fit what came before them, as far as the state was asked for. */
  get skipped(): readonly SkippedCommit[] {
    return this.chat.subscription.view().states.get(this.namespace)?.skipped ?? [];
  }
}

declare module "./chat.js" {
  interface Chat {
    /** A state document that follows messages and swipes. */
    floorState(namespace: string): FloorState;
  }
  interface Batch {
    floorState(namespace: string): FloorVerbs<void>;
  }
}
Chat.prototype.floorState = function (namespace) {
  return new FloorState(this, namespace);
};
Batch.prototype.floorState = function (namespace) {
  return new FloorVerbs(namespace, (make) => this.act(make));
};
