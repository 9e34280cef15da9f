/* Floor states: state documents that follow the messages and swipes of a chat.

   - A reducer runs here, on a copy, and again when somebody was faster.
   - What a floor state becomes when messages or swipes change is worked out by the server, in the same commit. */

import type { Chat } from "./chat.js";
import { floor, state, type Intent, type Updater } from "./intents.js";
import type { SkippedCommit } from "./frames.js";
import type { WriteResult } from "./outbox.js";
import type { Operation } from "./patch.js";

/** The message (its index) and swipe that a change is kept with; without them the last message and the swipe shown. */
export interface FloorPlace {
  floor?: number;
  swipe?: number;
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
