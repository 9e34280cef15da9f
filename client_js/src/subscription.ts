/* One owner's half of the conversation, without I/O: frames in; replica, outbox lane and wishes out.

     closed --open sent--> opening --opened--> parts --last part--> live
                                            \-> replaying --head reached--> live
     any --disconnected or gap--> closed            any --it cannot be opened--> gone

   - A commit that does not follow is never installed and never skipped: the owner is opened again from its head.
   - Unacknowledged writes go out again after `opened`, in order, with their numbers and text.
   - An answer about a version that the replica has not reached waits until it has, so that whoever awaited a write reads
     its own write.
   - When history was changed, writes that the server has not seen become conflicts; nothing is pushed onto a chat that
     nobody here has looked at. */

import { errorOf, TellbackError } from "./errors.js";
import { following } from "./follower.js";
import type { Ack, Behind, Conflict as ConflictFrame, Error as ErrorFrame, IntegrityFrame, Opened, Reset, SnapshotPart, Version } from "./frames.js";
import { ownerNamed } from "./ids.js";
import { recorded } from "./intents.js";
import { targetsOf } from "./lane.js";
import { PendingWrite, type Entry } from "./outbox.js";
import { askedEffects, ChatDocument, Replica, type Effect, type Message, type Write } from "./replica.js";
import { freeze, parse } from "./values.js";
import { Writes } from "./writes.js";

type Phase = "closed" | "opening" | "parts" | "replaying" | "live" | "gone";
type Answer = Ack | ConflictFrame;

export class Subscription extends Writes {
  phase: Phase = "closed";
  openAt = 0;
  onOpened: ((error?: TellbackError) => void)[] = [];
  /** What an earlier tab left behind. */
  private readonly left = new Set<PendingWrite>();
  private deferred: [PendingWrite, Answer][] = [];
  /** Commits that came between the parts of a snapshot. */
  private waiting: IntegrityFrame[] = [];
  private snapshot: { frame: Opened; messages: Message[]; mine: ChatDocument | undefined } | undefined;
  /** Head of the last `opened`: what a replay leads to. */
  private target: Version | undefined;
  /** Why the history that is known here is not gone on with. */
  private broken: { reason: string; recovered?: readonly string[]; kept?: boolean } | undefined;
  /** The chat_id was not found; the name is tried before giving up. */
  private byName = false;

  constructor(name: string, session: string, newRequestId: () => number, wake: () => void, public create = false) {
    super(name, session, newRequestId, wake);
    if (this.isChat) this.follower = following.make?.(this);
  }

  /** How frames name it. */
  get address(): string {
    return !this.chatId || this.byName ? this.name : this.owner;
  }

  /** Take over what an earlier tab left behind. Called before the first `opened`. */
  restore(entries: readonly Entry[]): void {
    for (const entry of entries) {
      const write: Write = freeze(parse(entry.data));
      const pending = new PendingWrite(recorded(write));
      Object.assign(pending, { write, data: entry.data, requestId: entry.requestId, number: write.op, journaled: true, targets: targetsOf(write) });
      this.left.add(pending);
      if (entry.conflicted) this.stalled.push(pending);
      else {
        this.lane.writes.push(pending);
        this.lane.nextNumber = Math.max(this.lane.nextNumber, pending.number + 1);
      }
    }
  }

  // -- opening

  get wantsOpen(): boolean {
    return this.phase === "closed";
  }

  /** Writes may be sent: numbers are in line, and no half snapshot could turn out to be another chat. */
  get maySend(): boolean {
    return this.phase === "replaying" || this.phase === "live";
  }

  openFrame(id: number): Write {
    this.phase = "opening";
    const since = !this.replica || this.broken ? null : this.replica.head;
    if (!this.isChat) return { type: "open", owner: ownerNamed(this.name), since, id };
    return { type: "open", chat: this.address, since, id, ...(this.create && !this.replica ? { create: true } : {}) };
  }

  /** The connection is gone; everything without an answer will be asked again. */
  disconnected(): void {
    this.resync();
    if (this.phase === "opening") this.phase = "closed";
    this.deferred = [];
    this.pausedUntil = 0;
    for (const pending of this.lane.writes) pending.sent = false;
    this.follower?.disconnected();
  }

  resync(): void {
    if (!/^(parts|replaying|live)$/.test(this.phase)) return;
    this.phase = "closed";
    this.snapshot = undefined;
    this.waiting = [];
  }

  /** `open` was answered with an error. */
  openRefused(frame: ErrorFrame, now: number): void {
    if (/^(backoff|now)$/.test(frame.retry)) {
      this.openAt = now + (frame.after_ms ?? this.backoff.next());
    } else if (frame.code === "renamed" && frame.to) {
      this.renamed(frame.to);
    } else if (frame.code === "not-found" && this.address !== this.name) {
      // A chat that was never written to has its id from its name; the server may know only the name.
      this.byName = true;
    } else {
      return this.fail(errorOf(frame));
    }
    this.phase = "closed";
  }

  /** It is gone: waiting openers and readers get the error, own writes become conflicts when there is something to see. */
  fail(error: TellbackError, isFinal = true): void {
    if (this.phase === "gone") return;
    this.phase = "gone";
    this.error = error;
    const mine = this.replica && this.view();
    const writes = [this.lane.writes, this.stalled, this.blocked].flatMap((waiting) => waiting.splice(0));
    if (isFinal) this.events.push({ type: "gone", code: error.code, message: error.reason });
    for (const pending of writes) {
      if (isFinal && mine) this.conflict(pending, `it cannot be opened: ${error.message}`, null, undefined, mine);
      else {
        this.lost = error;
        pending.settle(error);
      }
    }
    this.tellOpened(error);
    this.follower?.fail(error);
  }

  /** The answer to `open`. */
  opened(frame: Opened): void {
    if (this.phase === "gone") return;
    const id = frame.chat_id ?? frame.owner_id ?? "";
    this.backoff.worked();
    this.byName = false;
    this.readOnly = frame.read_only === true;
    this.damage = frame.damage ?? [];
    this.target = frame.head;
    this.waiting = [];
    this.snapshot = undefined;
    // The name leads to another chat now; its history is not ours.
    if (this.replica && this.chatId && this.chatId !== id) this.broken = { reason: "epoch" };
    this.chatId ||= id;
    this.follower?.opened(frame.generations ?? []);
    if (frame.mode === "snapshot") return this.beginSnapshot(frame, id);
    if (!this.replica || (frame.mode === "current" && !this.replica.knows(frame.head))) {
      // The server answers to a position that this client did not give.
      this.broken = { reason: "ahead" };
      this.phase = "closed";
      return;
    }
    this.phase = "replaying";
    this.reconcile(frame.next_op);
    this.caughtUp();
  }

  private beginSnapshot(frame: Opened, id: string): void {
    const messages = (frame.messages ?? []) as Message[];
    let mine: ChatDocument | undefined;
    if (this.replica && (this.isOtherHistory(frame.head) || id !== this.chatId)) mine = this.view().copy();
    if (frame.parts) {
      this.phase = "parts";
      this.snapshot = { frame, messages, mine };
    } else this.installSnapshot(frame, messages, mine);
  }

  private isOtherHistory({ epoch, seq, integrity }: Version): boolean {
    const known = this.replica!.head;
    return epoch !== known.epoch || seq < known.seq || (seq === known.seq && integrity !== known.integrity);
  }

  /** Messages of a large snapshot. */
  part(frame: SnapshotPart): void {
    if (!this.snapshot || this.phase !== "parts") return;
    const { frame: opened, messages, mine } = this.snapshot;
    messages.push(...(frame.messages as Message[]));
    if (frame.part !== frame.of) return;
    this.snapshot = undefined;
    this.installSnapshot(opened, messages, mine);
  }

  private installSnapshot(frame: Opened, messages: readonly Message[], mine: ChatDocument | undefined): void {
    const before = this.replica;
    const { head, next_op: nextOp } = frame;
    // What a character or preset has of a chat is empty, for ever at its first version.
    const version = frame.version ?? head;
    const byId = new Map(messages.map((message) => [message.id as string, freeze(message)]));
    this.replica = new Replica(new ChatDocument(this.name, this.chatId, version, head, freeze(frame.metadata ?? {}), byId));
    this.redraw();
    const { reason: known, recovered = [], kept = false } = this.broken ?? {};
    const reason = frame.reset ?? known ?? (mine ? "epoch" : "snapshot");
    this.broken = undefined;
    if (before) {
      this.events.push({ type: "replaced", version: head, reason, recovered, kept });
      // Own writes with an outcome are in the snapshot, or were refused.
      for (const pending of this.lane.writes) pending.installed = pending.number < nextOp;
    }
    if (mine) {
      for (const pending of this.lane.writes.filter(({ number }) => number >= nextOp)) {
        this.lane.remove(pending);
        this.conflict(pending, `the chat was replaced (${reason})`, version, undefined, mine);
      }
      for (const pending of this.blocked.splice(0)) this.conflict(pending, `the chat was replaced (${reason})`, version, undefined, mine);
    }
    this.phase = "replaying";
    this.reconcile(nextOp);
    for (const commit of this.waiting.splice(0)) this.commit(commit);
    this.caughtUp();
  }

  /** Numbers as the server counts them; then everything that is not in flight can be sent. */
  private reconcile(nextOp: number): void {
    // What an earlier tab sent, and the server has counted, is in the snapshot or was refused.
    for (const pending of this.left) pending.installed = pending.number < nextOp;
    const { renumbered, orphans } = this.lane.reconcile(nextOp, this.newRequestId);
    for (const [pending, before] of renumbered) this.record(pending, before);
    this.redraw();
    for (const pending of orphans) {
      // Its number may be another write's by now, so nothing is looked up by it.
      pending.number = 0;
      this.repeat(pending, "the write it builds on was refused", null, undefined);
    }
  }

  /** Live as soon as the replica holds the head that `opened` named. */
  private caughtUp(): void {
    if (this.phase !== "replaying" || !this.target || !this.replica?.knows(this.target)) return;
    this.phase = "live";
    for (const [pending, answer] of this.deferred.splice(0)) {
      if (this.lane.writes.includes(pending)) this.settleAnswer(pending, answer);
    }
    // What an earlier tab could not solve waits for a person again.
    const unsolved = this.stalled.filter((pending) => this.left.has(pending));
    this.stalled = this.stalled.filter((pending) => !this.left.has(pending));
    for (const pending of unsolved) this.conflict(pending, "left unsolved by an earlier tab", null);
    this.tellOpened();
    this.follower?.live();
    this.unblock();
  }

  private tellOpened(error?: TellbackError): void {
    for (const waiter of this.onOpened.splice(0)) waiter(error);
  }

  // -- commits and answers

  /** Somebody's commit, live or replayed. */
  commit(frame: IntegrityFrame): void {
    const { version, ops, by } = frame;
    if (!this.replica || this.phase === "closed" || this.phase === "gone") return;
    if (this.phase === "parts") return void this.waiting.push(frame);
    if (this.replica.knows(version)) return;
    // While `open` is on its way its answer brings what is missing.
    if (!this.replica.follows(version, frame.previous)) return this.resync();
    const mine = by?.session === this.session;
    const pending = mine ? this.lane.writes.find(({ number }) => number === by!.op) : undefined;
    if (pending) pending.installed = true;
    this.install(version, ops);
    this.events.push({ type: "committed", version, effects: ops, mine, ...(by ? { by } : {}), ...(pending ? { intent: pending.intent } : {}) });
    this.caughtUp();
    this.follow(ops);
  }

  /** The server held commits back from this tab: fetch them. */
  behind({ from, to }: Behind): void {
    this.events.push({ type: "behind", from, to });
    this.resync();
  }

  /** What is open was replaced. */
  reset(frame: Reset): void {
    this.resync();
    this.broken = frame;
  }

  /** An ack or a conflict for an own write. */
  answered(pending: PendingWrite, frame: Answer): void {
    this.backoff.worked();
    const { version } = frame;
    const replica = this.replica!;
    const isNext = frame.type === "ack" && replica.follows(frame.version) && !frame.resync;
    if (this.phase !== "parts" && (version === null || replica.knows(version) || isNext)) {
      this.settleAnswer(pending, frame);
      this.caughtUp();
      this.unblock();
      return;
    }
    this.deferred.push([pending, frame]);
    if (this.phase === "live") this.resync();
  }

  private settleAnswer(pending: PendingWrite, frame: Answer): void {
    this.lane.remove(pending);
    this.left.delete(pending);
    if (frame.type === "conflict") return this.repeat(pending, "somebody else was faster", frame.version, frame.missed);
    const write = pending.write!;
    const { version, branch, restored } = frame;
    const effects = askedEffects(write, frame, this.replica!.document);
    this.redraw();
    if (this.replica!.follows(version)) {
      this.install(version, effects);
      this.events.push({ type: "committed", version, effects, mine: true, intent: pending.intent });
    }
    if (write.type === "generation-start") {
      // Whoever wanted to produce it died before it began: nobody will.
      if (pending.intent.isRecorded) this.submit(new PendingWrite(recorded({ type: "generation-cancel", generation: write.generation })));
      else this.follower?.began(write, frame);
    }
    const messageIds = effects.flatMap((effect) => ("messages" in effect && effect.op !== "delete" ? effect.messages.map((message) => message.id as string) : []));
    this.settle(pending, {
      version, messageIds, rebased: frame.rebased === true, duplicate: frame.duplicate === true, changed: true, linkedFrom: frame.linked_from ?? [],
      ...(branch ? { branch } : {}), ...(restored ? { restored } : {}),
    });
    this.follow(effects);
  }

  /** It has another name, or is gone. */
  private follow(effects: readonly Effect[]): void {
    for (const effect of effects) {
      if (effect.op === "renamed") this.renamed(effect.to);
      if (effect.op === "deleted") {
        this.events.push({ type: "deleted", chatId: this.chatId });
        this.fail(new TellbackError("deleted", "It is in the trash.", { chatId: this.chatId }));
      }
    }
  }

  private renamed(to: string): void {
    const isById = this.name.startsWith("id:");
    this.events.push({ type: "renamed", name: isById ? "" : this.name, to });
    if (isById) return;
    this.name = to;
    // What the server calls by the old name may be another chat soon.
    this.resync();
  }

  private install(version: Version, effects: readonly Effect[]): void {
    const installed = this.follower?.installing(version, effects);
    this.replica!.install(version, effects);
    this.redraw();
    installed?.();
  }
}
