/* A chat that a context shows, and what its commits mean in the words of extensions. */

import type { Chat } from "../chat.js";
import type { Intent } from "../intents.js";
import { EventTypes, type Told } from "./emitter.js";
import { nameAlone, Narrator } from "./narrator.js";

/** A chat that the context shows. */
export class Held {
  readonly narrator: Narrator;
  readonly indexes = new WeakMap<Intent, Map<string, number>>();
  private readonly stops: (() => void)[];

  constructor(readonly chat: Chat, public address: string, tell: (held: Held, told: Told[], intent?: Intent, gone?: boolean) => void) {
    chat.stepped();
    const ids = () => [...chat.subscription.replica!.document.messages.keys()];
    this.narrator = new Narrator(ids(), nameAlone(address), address.startsWith("group:"));
    this.stops = [
      chat.on("committed", (event) => {
        const told = this.narrator.tell(event);
        if (event.intent) this.indexes.set(event.intent, new Map(told.filter(([, , info]) => (info as any)?.message_id).map(([, index, info]) => [(info as any).message_id, index as number])));
        tell(this, told, event.intent);
      }),
      chat.on("replaced", () => (this.narrator.replaced(ids()), tell(this, [[EventTypes.CHAT_CHANGED, this.narrator.name]]))),
      chat.on("conflicted", ({ conflict }) => tell(this, [[EventTypes.WRITE_CONFLICTED, conflict]], conflict.intent)),
      chat.on("renamed", ({ to }) => {
        this.address = to;
        tell(this, this.narrator.renamed(to));
      }),
      // The commit told already, unless it was made while nobody here was connected.
      chat.on("gone", ({ code }) => tell(this, code === "deleted" ? [this.narrator.deleted()] : [], undefined, true)),
      chat.on("deleted", () => tell(this, [], undefined, true)),
    ];
  }

  stop(): void {
    for (const stop of this.stops) stop();
  }
}
