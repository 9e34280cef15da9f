/* An owner as the user holds it: its writes and what happens to it. A chat is one with messages.

   - Every write resolves when the server acknowledged it, which is when it is durable; not before, and never by a timeout.
   - A write goes to the owner it was asked of, whatever is opened meanwhile. */

import type { Chat } from "./chat.js";
import type { Client } from "./client.js";
import type { Conflict } from "./conflict.js";
import { refused, TellbackError } from "./errors.js";
import { Emitter, same, type ChatEvents, type Status } from "./events.js";
import type { Version } from "./frames.js";
import type { Intent } from "./intents.js";
import { PendingWrite, type WriteResult } from "./outbox.js";
import type { Subscription } from "./subscription.js";

export class Handle extends Emitter<ChatEvents> {
  /** How often it was opened and not given back. */
  holders = 0;
  private told: Status = "connecting";
  private savers: (() => void)[] = [];
  private drawn: readonly unknown[] = [];

  /** @internal */
  constructor(/** @internal */ readonly client: Client, /** @internal */ readonly subscription: Subscription) {
    super();
    subscription.handle = this;
  }

  /** As it was opened. */
  get name(): string {
    return this.subscription.name;
  }

  /** The last confirmed commit of the owner. */
  get head(): Version {
    return this.subscription.replica!.head;
  }

  /** Own writes without an answer. */
  get pending(): number {
    return this.subscription.pending;
  }

  /** Own writes that wait for a decision. */
  get conflicts(): readonly Conflict[] {
    return this.subscription.conflicts;
  }

  /** Where it stands; the most urgent word first: a conflict, damage, no connection, work, peace. */
  get status(): Status {
    const { conflicts, readOnly, phase, pending } = this.subscription;
    if (conflicts.length) return "conflicted";
    if (readOnly) return "read-only";
    if (this.client.status !== "connected") return this.client.status === "connecting" ? "connecting" : "offline";
    if (phase === "gone") return "offline";
    return phase !== "live" || pending ? "syncing" : "synced";
  }

  /** @internal Carry an intent out. */
  write(intent: Intent): Promise<WriteResult> {
    return new Promise((resolve, reject) => {
      this.subscription.submit(new PendingWrite(intent, (outcome) => (outcome instanceof Error ? reject(outcome) : resolve(outcome))));
      this.client.stepped();
    });
  }

  /** Wait until no own write is without an answer. Throws `conflict` when one waits for a decision, and what ended the
      owner, for ever, when it is gone. */
  async saved(): Promise<void> {
    await this.answered();
    const { error } = this.subscription;
    if (error) throw error;
  }

  /** @internal The same; that it is gone is no fault when every write had its answer. */
  async answered(): Promise<void> {
    const { subscription } = this;
    while (subscription.pending && !subscription.error) await new Promise<void>((resolve) => this.savers.push(resolve));
    const [conflict] = subscription.conflicts;
    if (conflict) throw new TellbackError("conflict", conflict.reason, { conflict });
  }

  /** Wait for the own writes, then end the subscription. Throws `conflict` when one waits for a decision. */
  async close(): Promise<void> {
    await this.answered();
    await this.client.closeHandle(this);
  }

  // -- the exits of a conflict

  /** @internal */
  takeTheirs(conflict: Conflict): void {
    this.subscription.solved(conflict);
    this.client.stepped();
  }

  /** @internal */
  async applyMineAgain(conflict: Conflict): Promise<WriteResult> {
    // Of what is gone nothing is given up: the conflict stays.
    const { error } = this.subscription;
    if (error) throw error;
    try {
      return await this.write(conflict.intent);
    } finally {
      // Whatever came of it is told to the caller, or is a conflict of its own.
      this.takeTheirs(conflict);
    }
  }

  /** @internal */
  async saveMineAs(_conflict: Conflict, _name: string): Promise<Chat> {
    throw refused("unsupported", "Only a chat can be saved under another name.");
  }

  // -- called by the client

  /** @internal Tell what happened since the last call. */
  stepped(): void {
    const { subscription } = this;
    for (const event of subscription.events.splice(0)) this.emit(event.type, event);
    if (subscription.replica) {
      const { all, metadata, head } = subscription.view();
      const now = [all, metadata, head.integrity, subscription.pending, subscription.conflicts];
      if (!same(now, this.drawn)) {
        this.drawn = now;
        this.emit("changed", {});
      }
    }
    const { status } = this;
    if (status !== this.told) this.emit("status", { status: (this.told = status) });
    if (!subscription.pending || subscription.error) for (const resolve of this.savers.splice(0)) resolve();
  }
}
