/* The client's half of one session, without I/O: text in, text out, across any number of connections.

     offline --connected--> greeting --welcome--> ready --disconnected--> offline        any --fail--> closed

   - All owners are opened again on every connection, from where their replicas stand.
   - Answers are matched by request id; ids are unique in a session.
   - A frame that nobody here understands changes nothing; one that is no JSON ends the connection, not the program. */

import { errorOf, TellbackError } from "./errors.js";
import type { Error as ErrorFrame, Goaway, Limits, ModelServer, Opened, OwnerName, ServerFrame } from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import { ownerNamed, textOf } from "./ids.js";
import { named } from "./lane.js";
import type { Entry, PendingWrite, Record_ } from "./outbox.js";
import type { Write } from "./replica.js";
import { Subscription } from "./subscription.js";
import { parse, stringify } from "./values.js";

export type Waiter = (answer: any, error?: TellbackError) => void;

/** What becomes of a request on this connection: its answer, its refusal, or neither when the connection ends first. */
type Asked = (frame?: any, refusal?: ErrorFrame) => void;

interface Question {
  request: Write;
  waiter: Waiter;
  asked: number;
}

export class Link {
  state: "offline" | "greeting" | "ready" | "closed" = "offline";
  limits: Limits = {};
  user = "";
  upstreams: readonly ModelServer[] = [];
  subscriptions: Subscription[] = [];
  /** Why the link is closed for ever. */
  error: TellbackError | undefined;
  /** The last error that named no request: a close code follows it. */
  refusal: ErrorFrame | undefined;
  goaway: Goaway | undefined;
  /** Something was opened or answered on this connection: the backoff starts anew. */
  useful = false;
  /** A write was refused until a fresh token is sent. */
  needsToken = false;
  heartbeat: Heartbeat | undefined;
  private control: Write[] = [];
  /** Asked on every connection until there is an answer. */
  private readonly questions = new Set<Question>();
  /** By request id; writes are in their lanes. */
  private asked = new Map<number, Asked>();
  private aliases = new Map<string, Subscription>();
  private requestId = 0;
  private now = 0;

  constructor(readonly session: string, public token: string | null, private readonly journaling: boolean, private readonly wake: () => void) {}

  // -- what the shell calls

  connected(now: number): void {
    this.state = "greeting";
    this.heartbeat = new Heartbeat(now, 25_000);
    this.goaway = this.refusal = undefined;
    this.useful = this.needsToken = false;
    this.control = [{ type: "hello", protocol: 1, session: this.session, token: this.token, client: "tellback-js 0.1.0" }];
  }

  disconnected(): void {
    if (this.state !== "closed") this.state = "offline";
    this.heartbeat = undefined;
    this.control = [];
    const lost = [...this.asked.values()];
    this.asked.clear();
    for (const asked of lost) asked();
    for (const held of this.subscriptions) held.disconnected();
  }

  /** There will be no further connection: everything that waits gets the error. */
  fail(error: TellbackError): void {
    this.disconnected();
    this.state = "closed";
    this.error = error;
    for (const { waiter } of this.questions) waiter(undefined, error);
    this.questions.clear();
    for (const held of this.subscriptions) held.fail(error, false);
  }

  /** Frames to send now, in order. */
  collect(now: number): string[] {
    this.now = now;
    if (this.state === "ready" && this.heartbeat?.due(now)) this.control.push({ type: "ping", id: this.newRequestId() });
    const frames = this.control.splice(0).map(stringify);
    if (this.state === "ready" && !this.goaway) {
      this.collectOpens(frames);
      this.collectQuestions(frames);
      for (const held of this.subscriptions) if (held.maySend) frames.push(...(held.follower?.collect(now) ?? []).map(stringify));
      this.collectWrites(frames);
    }
    return frames;
  }

  /** The peer did not answer in time: end the connection. */
  isDead = (now: number): boolean => !!this.heartbeat?.isDead(now);

  /** When `collect` and `isDead` are to be asked again although nothing happened. */
  get deadline(): number | undefined {
    if (!this.heartbeat) return undefined;
    const times = [this.heartbeat.deadline];
    for (const held of this.subscriptions) {
      if (held.wantsOpen) times.push(held.openAt);
      else if (held.lane.writes.length) times.push(held.pausedUntil);
      if (held.maySend) times.push(...(held.follower?.deadlines ?? []));
    }
    const later = times.filter((time) => time > this.now);
    return later.length ? Math.min(...later) : undefined;
  }

  /** Changes for the outbox, in order; each is handed out once. */
  journal(): Record_[] {
    return this.subscriptions.flatMap((held) => held.records.splice(0));
  }

  /** The changes are durable: their writes may be sent. */
  journaled(records: readonly Record_[]): void {
    for (const record of records) {
      if ("put" in record && record.pending?.requestId === record.put.requestId) record.pending.journaled = true;
    }
  }

  // -- what the user asks

  newRequestId = (): number => ++this.requestId;

  /** The subscription to an owner; there is one for each. */
  subscribe(name: string, create = false): Subscription {
    const known = this.aliases.get(name);
    if (known && known.phase !== "gone") return known;
    const held = new Subscription(name, this.session, this.newRequestId, this.wake, create);
    this.subscriptions.push(held);
    this.aliases.set(name, held);
    if (this.error) held.fail(this.error, false);
    return held;
  }

  /** Whether an owner is open. */
  holds(name: string): boolean {
    const held = this.aliases.get(name);
    return !!held?.replica && !held.error;
  }

  /** Drop a subscription that could not be opened, or was closed. */
  forget(subscription: Subscription): void {
    this.subscriptions = this.subscriptions.filter((held) => held !== subscription);
    this.aliases = new Map([...this.aliases].filter(([, held]) => held !== subscription));
  }

  /** Close an owner; `done` is called when the server has. */
  unsubscribe(held: Subscription, done: () => void): void {
    const { phase, address } = held;
    this.forget(held);
    if (phase === "closed" || phase === "gone" || this.error) return done();
    const id = this.expect(() => done());
    // Ahead of all opens: the same chat may be opened again at once.
    this.control.push(held.isChat ? { type: "close", chat: address, id } : { type: "close", owner: ownerNamed(held.name), id });
  }

  /** Send a question; it is asked again on the next connection when one ends first. */
  ask(request: Write, waiter: Waiter): void {
    if (this.error) return waiter(undefined, this.error);
    this.questions.add({ request: named(request, this.newRequestId()), waiter, asked: 0 });
  }

  /** Send a fresh token on this connection, and use it for the next. */
  authenticate(token: string): void {
    this.token = token;
    this.needsToken = false;
    if (this.state === "ready") this.control.push({ type: "auth", token, id: this.newRequestId() });
  }

  /** Take over the writes of an earlier tab; their owners are opened to send them. */
  restore(entries: readonly Entry[]): void {
    const byOwner = new Map<string, Entry[]>();
    for (const entry of entries) {
      byOwner.set(entry.owner, [...(byOwner.get(entry.owner) ?? []), entry]);
      this.requestId = Math.max(this.requestId, entry.requestId);
    }
    for (const [owner, ofOne] of byOwner) this.subscribe(owner).restore(ofOne);
  }

  // -- collecting

  /** The id of a request that is going to be sent. */
  private expect(asked: Asked, id = this.newRequestId()): number {
    this.asked.set(id, asked);
    return id;
  }

  private collectOpens(frames: string[]): void {
    for (const held of this.subscriptions) {
      if (!held.wantsOpen || this.now < held.openAt) continue;
      const id = this.expect((frame, refusal) => {
        if (frame) this.opened(frame, held);
        else if (refusal && held.phase === "opening") this.followName(held, () => held.openRefused(refusal, this.now));
      });
      frames.push(stringify(held.openFrame(id)));
    }
  }

  private collectQuestions(frames: string[]): void {
    for (const question of this.questions) {
      const { request, waiter } = question;
      if (this.asked.has(request.id)) continue;
      question.asked++;
      this.expect((frame, refusal) => {
        if (!frame && !refusal) return;
        if (!isPart(frame)) this.questions.delete(question);
        // The answer to a resend is this call's own.
        if (frame?.type === "ack" && question.asked > 1) delete frame.duplicate;
        waiter(frame, refusal && errorOf(refusal));
      }, request.id);
      frames.push(stringify(request));
    }
  }

  /** Writes in order within each owner, as far as the server's window reaches. */
  private collectWrites(frames: string[]): void {
    const flying = this.subscriptions.flatMap((held) => held.lane.writes.filter(({ sent }) => sent));
    const { frame_bytes: bytesMax = 4 << 20, in_flight: flyingMax = 64, in_flight_bytes: flyingBytesMax = 8 << 20 } = this.limits;
    let room = flyingMax - flying.length;
    // In UTF-16 units, of which each is at most three bytes.
    let roomUnits = flyingBytesMax / 3 - flying.reduce((sum, { data }) => sum + data.length, 0);
    for (const held of this.subscriptions) {
      if (!held.maySend || this.now < held.pausedUntil) continue;
      const { writes } = held.lane;
      const counted = writes.filter(({ installed }) => installed);
      for (const pending of counted.length ? counted : [...writes]) {
        if (pending.sent) continue;
        if (held.follower?.maySend(pending.write!) === false) break;
        const { data } = pending;
        if (room <= 0 || (roomUnits < data.length && room < flyingMax)) return;
        if (this.journaling && !pending.journaled) break;
        const bytes = data.length * 3 > bytesMax ? new TextEncoder().encode(data).length : 0;
        if (bytes > bytesMax) {
          held.refuseLocally(pending, "too-large", `A frame has at most ${bytesMax} bytes, this one has ${bytes}.`);
          break;
        }
        pending.sent = true;
        frames.push(data);
        room--;
        roomUnits -= data.length;
      }
    }
  }

  // -- receiving

  /** A text message from the server. Throws `protocol-violation` for what is none; end the connection then. */
  received(text: string, now: number): void {
    this.now = now;
    this.heartbeat?.heard(now);
    let frame: ServerFrame;
    try {
      frame = parse(text);
    } catch {
      throw new TellbackError("protocol-violation", "the server sent what is no JSON");
    }
    this.receive(frame);
  }

  private receive(frame: ServerFrame): void {
    switch (frame.type) {
      case "integrity":
        return this.of(frame, (held) => held.commit(frame));
      case "ack":
      case "conflict": {
        const found = this.write(frame.id);
        if (!found) return this.answer(frame);
        this.useful = true;
        return this.followName(found[0], () => found[0].answered(found[1], frame));
      }
      case "error":
        return this.refused(frame);
      case "snapshot-part":
        return this.of(frame, (held) => held.part(frame));
      case "reset":
        return this.of(frame, (held) => held.reset(frame));
      case "behind":
        return this.of(frame, (held) => held.behind(frame));
      case "welcome":
        this.limits = frame.limits;
        this.user = frame.user;
        this.upstreams = frame.upstreams ?? [];
        if (this.state === "greeting") {
          this.state = "ready";
          this.heartbeat = new Heartbeat(this.now, frame.heartbeat_ms);
        }
        return;
      case "goaway":
        this.goaway = frame;
        return;
      case "generation-started":
      case "generation-delta":
      case "generation-stored":
      case "generation-done":
        return this.of(frame, (held) => held.follower?.received(frame, this.now));
      default:
        this.answer(frame);
    }
  }

  /** A frame about an owner that was closed meanwhile is late, not wrong. */
  private of(frame: { chat?: string; owner?: OwnerName }, act: (held: Subscription) => void): void {
    const held = this.aliases.get(frame.chat ?? textOf(frame.owner));
    if (held) this.followName(held, () => act(held));
  }

  /** Whoever asks for the new name gets this subscription; the old one is free for another chat. */
  private followName(held: Subscription, act: () => void): void {
    const before = held.name;
    act();
    if (held.name === before) return;
    if (this.aliases.get(before) === held) this.aliases.delete(before);
    this.aliases.set(held.name, held);
  }

  private opened(frame: Opened, given: Subscription): void {
    if (!this.subscriptions.includes(given)) return;
    let held = given;
    const earlier = this.aliases.get(`id:${frame.chat_id}`);
    if (earlier && earlier.phase !== "gone" && earlier !== held && !held.chatId) {
      // The same chat by another name, or one with writes from the outbox: one subscription.
      this.subscriptions = this.subscriptions.filter((one) => one !== given);
      earlier.onOpened.push(...given.onOpened);
      if (earlier.name.startsWith("id:")) earlier.name = given.name;
      for (const [name, one] of this.aliases) if (one === given) this.aliases.set(name, earlier);
      held = earlier;
    }
    this.aliases.set(frame.chat ?? textOf(frame.owner), held);
    if (held.isChat) this.aliases.set(`id:${frame.chat_id}`, held);
    held.opened(frame);
  }

  /** The write that a frame answers; undefined for the second answer to a resend. */
  private write(id: number | null | undefined): [Subscription, PendingWrite] | undefined {
    for (const held of this.subscriptions) {
      const pending = held.lane.writes.find(({ requestId }) => requestId === id);
      if (pending) return [held, pending];
    }
    return undefined;
  }

  private refused(frame: ErrorFrame): void {
    if (typeof frame.id !== "number") {
      if (frame.generation !== undefined && frame.chat !== undefined) this.aliases.get(frame.chat)?.follower?.received(frame, this.now);
      else this.refusal = frame;
      return;
    }
    const found = this.write(frame.id);
    if (!found) return this.answer(frame, frame);
    found[0].writeRefused(found[1], frame, this.now);
    this.needsToken ||= frame.retry === "after-auth";
  }

  /** What was asked has its answer. */
  private answer(frame: { id?: number | null }, refusal?: ErrorFrame): void {
    const asked = this.asked.get(frame.id ?? -1);
    if (!asked) return;
    if (!isPart(frame)) this.asked.delete(frame.id!);
    this.useful ||= !refusal;
    asked(refusal ? undefined : frame, refusal);
  }
}

/** Whether more of the same answer follows. Parts of a snapshot come without being asked for. */
const isPart = (frame: any): boolean => frame && ((frame.type === "history" && frame.parts) || frame.part < frame.of);
