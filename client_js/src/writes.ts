/* The own writes to one owner, from the wish to the outcome: asked, refused, asked again, or left to a person.

     submit --> lane --ack--> settled
                  |---conflict, parent refused--> asked again | conflict
                  |---refused--> settled with an error
                  `---overloaded, gap--> stays, and is sent again

   - A write has exactly one outcome, whatever happens to the connection.
   - Asking again takes a new number and a new base; the old number keeps its outcome.
   - What cannot be asked yet waits in order: for what has to be fetched (`stalled`), or for answers (`blocked`). */

import { Conflict } from "./conflict.js";
import { errorOf, TellbackError } from "./errors.js";
import type { Told } from "./events.js";
import type { Damage, Error as ErrorFrame, IntegrityFrame, Version } from "./frames.js";
import type { Handle } from "./handle.js";
import type { Follower } from "./follower.js";
import { Backoff } from "./heartbeat.js";
import { ownerNamed } from "./ids.js";
import { toWrite, Unfetched } from "./intents.js";
import { ENTANGLED, Lane } from "./lane.js";
import type { PendingWrite, Record_, WriteResult } from "./outbox.js";
import { show, type ChatDocument, type Replica } from "./replica.js";

/** Automatic repetitions of one write; more means that others write faster than this client can read. */
const ATTEMPTS_MAX = 16;
/** Of a wish given as a function: each lost attempt is somebody else's success. */
const FUNCTION_ATTEMPTS_MAX = 10_000;

export abstract class Writes {
  /** False for a character or preset: it has state documents only, and is always called by its name. */
  readonly isChat: boolean;
  /** Set by the first `opened`; never changed. */
  chatId = "";
  replica: Replica | undefined;
  /** How the user holds it. */
  handle: Handle | undefined;
  readonly lane = new Lane();
  /** Writes that wait for something to be fetched before they can be asked. */
  stalled: PendingWrite[] = [];
  /** Writes, in order, that wait until those they are entangled with have their answers. */
  blocked: PendingWrite[] = [];
  /** Another array after every change. */
  conflicts: readonly Conflict[] = [];
  readOnly = false;
  /** What is wrong with the file of a chat that is served read-only. */
  damage: readonly Damage[] = [];
  /** Why the owner is gone. */
  error: TellbackError | undefined;
  /** The same, until the client took it, when writes without an answer went with it and are no conflicts. */
  lost: TellbackError | undefined;
  /** Writes wait until then, because the server asked for it. */
  pausedUntil = 0;
  events: Told[] = [];
  /** Where replies are followed. */
  follower: Follower | undefined;
  /** For the outbox, in order. */
  records: Record_[] = [];
  protected readonly backoff = new Backoff(100, 5000);
  private drawn: ChatDocument | undefined;

  constructor(public name: string, readonly session: string, protected readonly newRequestId: () => number, readonly wake: () => void) {
    this.isChat = ownerNamed(name).chat !== undefined;
  }

  /** How frames name it. */
  abstract readonly address: string;

  /** Open the owner again on this connection, if it is not being opened already. */
  abstract resync(): void;

  /** How writes and the outbox name the owner. A chat is known by its id once it is open. */
  get owner(): string {
    return this.isChat ? `id:${this.chatId}` : this.name;
  }

  /** Own writes without an answer. */
  get pending(): number {
    return this.lane.writes.length + this.stalled.length + this.blocked.length;
  }

  /** The confirmed chat with the own writes on top; not to be changed. */
  view = (): ChatDocument => {
    const shown = this.lane.shown();
    if (!shown.length) return this.replica!.document;
    return (this.drawn ??= this.replica!.view(shown));
  };

  redraw(): void {
    this.drawn = undefined;
  }

  /** Take a write on. Its outcome comes through `settle`, now or later. */
  submit(pending: PendingWrite): void {
    if (this.error) this.settle(pending, this.error);
    else if (this.blocked.length) this.blocked.push(pending);
    else this.carryOut(pending);
  }

  // -- refusals

  /** An own write was answered with an error. */
  writeRefused(pending: PendingWrite, frame: ErrorFrame, now: number): void {
    const { code } = frame;
    if (code === "generation-gap") {
      if (this.follower?.sendsAgain(pending.write!)) pending.sent = false;
      else this.refuse(pending, errorOf(frame));
    } else if (code === "op-gap" || code === "not-open") {
      pending.sent = false;
      const first = this.lane.writes.find(({ number }) => number === frame.expected);
      if (!first || first.sent) this.resync();
    } else if (/^(backoff|now|after-auth)$/.test(frame.retry)) {
      pending.sent = false;
      this.pausedUntil = Math.max(this.pausedUntil, now + (frame.after_ms ?? this.backoff.next()));
    } else if (code === "op-forgotten") {
      this.lane.remove(pending);
      this.settle(pending, new TellbackError("outcome-unknown", `The outcome of op ${pending.number} is no longer kept.`, { op: pending.number }));
    } else if (code === "op-mismatch" && pending.installed && pending.intent.isRecorded) {
      // The number that the server counted was another request's: this one was not stored.
      this.lane.giveUpNumber(pending);
      this.resync();
    } else if (code === "parent-refused" || (code === "base-illegal" && /\/base\/op$/.test(frame.pointer ?? ""))) {
      this.lane.remove(pending);
      this.repeat(pending, "the write it builds on was refused", null, undefined);
    } else {
      this.refuse(pending, errorOf({ ...frame, op: pending.number }));
    }
    this.redraw();
    this.unblock();
  }

  /** A write that cannot be sent at all. */
  refuseLocally(pending: PendingWrite, code: string, reason: string): void {
    this.refuse(pending, new TellbackError(code, reason, { op: pending.number }));
    this.unblock();
  }

  /** It failed for good. Whether its number was counted the server says when the owner is opened again. */
  private refuse(pending: PendingWrite, error: TellbackError): void {
    this.lane.doomChildren(pending);
    this.lane.remove(pending);
    this.resync();
    this.redraw();
    this.settle(pending, error);
  }

  // -- repeating

  /** Ask for what `pending` intends, on what is there now. */
  private carryOut(pending: PendingWrite): void {
    const before = pending.requestId;
    try {
      const parts = pending.intent.parts(this.view);
      if (!parts.length) {
        const { version, head } = this.view();
        return this.settle(pending, { version: this.isChat ? version : head, messageIds: [], rebased: false, duplicate: false, changed: false, linkedFrom: [] });
      }
      this.lane.add(pending, toWrite(this.owner, parts), this.newRequestId(), this.replica!);
    } catch (error) {
      if (error === ENTANGLED) this.blocked.push(pending);
      else if (error instanceof Unfetched) {
        this.stalled.push(pending);
        error.fetch(this, (problem) => this.resume(pending, problem));
      } else this.settle(pending, error as Error); // The user's own function failed, or there is nothing that could be asked.
      return;
    }
    this.record(pending, before);
    if (this.drawn) this.drawn = show(this.drawn, pending.write!);
  }

  protected record(pending: PendingWrite, replaces: number): void {
    const { session, owner } = this;
    this.records.push({ put: { session, requestId: pending.requestId, owner, data: pending.data }, replaces, pending });
  }

  /** Ask for what waited, in order, as far as it goes. */
  protected unblock(): void {
    const waiting = this.blocked.splice(0);
    while (waiting.length && !this.blocked.length && !this.error) this.carryOut(waiting.shift()!);
    this.blocked.push(...waiting);
  }

  private resume(pending: PendingWrite, error?: TellbackError): void {
    // It was settled when the owner was lost.
    if (!this.stalled.includes(pending)) return;
    this.stalled = this.stalled.filter((one) => one !== pending);
    if (error) this.settle(pending, error);
    else this.carryOut(pending);
  }

  /** A stale write: ask again when it still means the same, or leave it to a person. */
  protected repeat(pending: PendingWrite, reason: string, version: Version | null, missed: readonly IntegrityFrame[] | undefined): void {
    this.lane.doomChildren(pending);
    this.redraw();
    const attempts = pending.intent.isFunction ? FUNCTION_ATTEMPTS_MAX : ATTEMPTS_MAX;
    if (pending.attempts < attempts && pending.intent.repeatable(this.view)) this.carryOut(pending);
    else this.conflict(pending, reason, version, missed);
  }

  protected conflict(pending: PendingWrite, reason: string, version: Version | null, missed?: readonly IntegrityFrame[], mine?: ChatDocument): void {
    mine ??= this.replica!.view([...this.lane.shown(), ...(pending.write ? [pending.write] : [])]);
    const conflict = new Conflict(this, pending.number, pending.requestId, pending.intent, reason, version, missed, mine);
    this.conflicts = [...this.conflicts, conflict];
    this.records.push({ conflicted: pending.requestId });
    this.events.push({ type: "conflicted", conflict });
    pending.settle(new TellbackError("conflict", reason, { op: pending.number, conflict }));
  }

  /** An exit was taken. */
  solved(conflict: Conflict): void {
    if (!this.conflicts.includes(conflict)) return;
    this.conflicts = this.conflicts.filter((one) => one !== conflict);
    this.records.push({ done: conflict.requestId });
  }

  protected settle(pending: PendingWrite, outcome: WriteResult | Error): void {
    if (pending.requestId) this.records.push({ done: pending.requestId });
    pending.settle(outcome);
  }
}

