/* The client's half of one session, without I/O: text in, text out, across any number of connections.

     offline --connected--> greeting --welcome--> ready --disconnected--> offline        any --fail--> closed

   - All owners are opened again on every connection, from where their replicas stand.
   - Answers are matched by request id; ids are unique in a session.
   - A frame that nobody here understands changes nothing; one that is no JSON ends the connection, not the program. */

import { errorOf, TellbackError } from "./errors.js";
import type { Ack, Conflict, Error as ErrorFrame, Goaway, HistoryFrame, Limits, ModelServer, Opened, OwnerName, ServerFrame } from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import { ownerNamed, textOf } from "./ids.js";
import type { Entry, PendingWrite, Record_ } from "./outbox.js";
import { Subscription } from "./subscription.js";
import { parse, stringify } from "./values.js";
import type { Write } from "./replica.js";

export type Waiter = (answer: any, error?: TellbackError) => void;

interface Question {
  request: Write;
  waiter: Waiter;
  asked: number;
  sent: boolean;
}

const UNREADABLE = /^(bad-json|bad-frame|too-large|too-deep|number-range|unknown-type)$/;
const LIMITS = {
  frame_bytes: 4194304, depth: 64, patch_ops: 10000, document_bytes: 8388608, messages: 10000, in_flight: 64, in_flight_bytes: 8388608,
  open_chats: 256, outcomes: 256,
};

export class Link {
  state: "offline" | "greeting" | "ready" | "closed" = "offline";
  limits: Required<Limits> = LIMITS;
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
  /** One of the requests that wait cannot be read by the server: each is sent when the one before is answered. */
  private oneByOne = false;
  private control: Write[] = [];
  private readonly questions = new Map<number, Question>();
  private readonly closes = new Map<number, () => void>();
  private readonly histories = new Map<number, HistoryFrame>();
  private readonly opens = new Map<number, Subscription>();
  private readonly stateGets = new Map<number, { held: Subscription; names: string[] }>();
  private aliases = new Map<string, Subscription>();
  private requestId = 0;
  private now = 0;

  constructor(readonly session: string, public token: string | null, private readonly software: string, private readonly journaling: boolean, private readonly wake: () => void) {}

  // -- what the shell calls

  connected(now: number): void {
    this.state = "greeting";
    this.heartbeat = new Heartbeat(now, 25_000);
    this.goaway = this.refusal = undefined;
    this.useful = this.needsToken = false;
    this.control = [{ type: "hello", protocol: 1, session: this.session, token: this.token, client: this.software }];
  }

  disconnected(): void {
    if (this.state !== "closed") this.state = "offline";
    this.heartbeat = undefined;
    this.control = [];
    this.opens.clear();
    this.stateGets.clear();
    this.histories.clear();
    for (const done of this.closes.values()) done();
    this.closes.clear();
    for (const question of this.questions.values()) question.sent = false;
    for (const held of this.subscriptions) held.disconnected();
  }

  /** There will be no further connection: everything that waits gets the error. */
  fail(error: TellbackError): void {
    this.disconnected();
    this.state = "closed";
    this.error = error;
    for (const { waiter } of this.questions.values()) waiter(undefined, error);
    this.questions.clear();
    for (const held of this.subscriptions) held.fail(error, false);
  }

  /** Frames to send now, in order. */
  collect(now: number): string[] {
    this.now = now;
    if (this.state !== "greeting" && this.state !== "ready") return [];
    if (this.state === "ready" && this.heartbeat?.due(now) === "ping") this.control.push({ type: "ping", id: this.newRequestId() });
    const frames = this.control.splice(0).map(stringify);
    if (this.state === "ready" && !this.goaway) {
      this.collectOpens(frames);
      this.collectReads(frames);
      for (const held of this.subscriptions) if (held.maySend) frames.push(...(held.follower?.collect(now) ?? []).map(stringify));
      this.collectWrites(frames);
    }
    return frames;
  }

  /** The peer did not answer in time: end the connection. */
  isDead = (now: number): boolean => this.heartbeat?.due(now) === "dead";

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
    const id = this.newRequestId();
    this.closes.set(id, done);
    // Ahead of all opens: the same chat may be opened again at once.
    this.control.push(held.isChat ? { type: "close", chat: address, id } : { type: "close", owner: ownerNamed(held.name), id });
  }

  /** Send a question; it is asked again on the next connection when one ends first. */
  ask(request: Write, waiter: Waiter): void {
    if (this.error) return waiter(undefined, this.error);
    const id = this.newRequestId();
    this.questions.set(id, { request: { ...request, id }, waiter, asked: 0, sent: false });
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

  private collectOpens(frames: string[]): void {
    for (const held of this.subscriptions) {
      if (!held.wantsOpen || this.now < held.openAt || !this.turn()) continue;
      const id = this.newRequestId();
      this.opens.set(id, held);
      frames.push(stringify(held.openFrame(id)));
    }
  }

  private collectReads(frames: string[]): void {
    for (const held of this.subscriptions) {
      const wanted = [...held.wantedStates.keys()].filter((name) => !held.askedStates.has(name));
      if (!wanted.length || !held.maySend) continue;
      const together = wanted.filter((name) => !held.loneStates.has(name));
      const alone = wanted.filter((name) => held.loneStates.has(name)).map((name) => [name]);
      for (const names of [...(together.length ? [together] : []), ...alone]) {
        if (!this.turn()) break;
        const id = this.newRequestId();
        for (const name of names) held.askedStates.add(name);
        this.stateGets.set(id, { held, names });
        frames.push(stringify({ type: "state-get", owner: ownerNamed(held.address), namespaces: names, id }));
      }
    }
    for (const question of this.questions.values()) {
      if (question.sent || !this.turn()) continue;
      question.sent = true;
      question.asked++;
      frames.push(stringify(question.request));
    }
  }

  /** Writes in order within each owner, as far as the server's window reaches. */
  private collectWrites(frames: string[]): void {
    const flying = this.subscriptions.flatMap((held) => held.lane.writes.filter(({ sent }) => sent));
    let room = this.limits.in_flight - flying.length;
    // In UTF-16 units, of which each is at most three bytes.
    let roomUnits = this.limits.in_flight_bytes / 3 - flying.reduce((sum, { data }) => sum + data.length, 0);
    for (const held of this.subscriptions) {
      if (!held.maySend || this.now < held.pausedUntil) continue;
      for (const pending of [...held.lane.writes]) {
        if (pending.sent) continue;
        if (held.follower?.maySend(pending.write!) === false) break;
        const { data } = pending;
        if (room <= 0 || !this.turn() || (roomUnits < data.length && room < this.limits.in_flight)) return;
        if (this.journaling && !pending.journaled) break;
        const bytes = data.length * 3 > this.limits.frame_bytes ? new TextEncoder().encode(data).length : 0;
        if (bytes > this.limits.frame_bytes) {
          held.refuseLocally(pending, "too-large", `A frame has at most ${this.limits.frame_bytes} bytes, this one has ${bytes}.`);
          break;
        }
        pending.sent = true;
        frames.push(data);
        room--;
        roomUnits -= data.length;
      }
    }
  }

  /** Whether one more request may be sent. */
  private turn(): boolean {
    return !this.oneByOne || !(this.asked().length || this.subscriptions.some((held) => held.lane.writes.some(({ sent }) => sent)));
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
        this.useful = true;
        const found = this.write(frame);
        if (!found) return this.answer(frame.id, frame);
        return this.followName(found[0], () => found[0].answered(found[1], frame));
      }
      case "error":
        return this.refused(frame);
      case "opened":
        this.useful = true;
        return this.opened(frame);
      case "snapshot-part":
        return this.of(frame, (held) => held.part(frame));
      case "state": {
        const asked = this.stateGets.get(frame.id ?? -1);
        if (!asked) return this.answer(frame.id, frame);
        this.stateGets.delete(frame.id!);
        return asked.held.statesReceived(frame);
      }
      case "reset":
        return this.of(frame, (held) => held.reset(frame));
      case "behind":
        return this.of(frame, (held) => held.behind(frame));
      case "welcome":
        this.limits = { ...LIMITS, ...frame.limits };
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
      case "history":
        if (!frame.parts) return this.answer(frame.id, frame);
        this.histories.set(frame.id!, { ...frame, messages: [] });
        return;
      case "history-part": {
        const whole = this.histories.get(frame.id ?? -1);
        whole?.messages!.push(...frame.messages);
        if (!whole || frame.part !== frame.of) return;
        this.histories.delete(frame.id!);
        return this.answer(frame.id, whole);
      }
      case "generation-started":
      case "generation-delta":
      case "generation-stored":
      case "generation-done":
        return this.of(frame, (held) => held.follower?.received(frame, this.now));
      case "pong":
        return;
      default:
        // All others answer a question, and nothing else changes.
        this.answer((frame as { id?: number | null }).id, frame);
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

  private opened(frame: Opened): void {
    let held = this.opens.get(frame.id ?? -1);
    this.opens.delete(frame.id ?? -1);
    if (!held || !this.subscriptions.includes(held)) return this.answer(frame.id, frame);
    const earlier = this.aliases.get(`id:${frame.chat_id}`);
    if (earlier && earlier.phase !== "gone" && earlier !== held && !held.chatId) {
      // The same chat by another name, or one with writes from the outbox: one subscription.
      const given = held;
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
  private write(frame: Ack | Conflict | ErrorFrame): [Subscription, PendingWrite] | undefined {
    for (const held of this.subscriptions) {
      const pending = held.lane.writes.find(({ requestId }) => requestId === frame.id);
      if (pending) return [held, pending];
    }
    return undefined;
  }

  private refused(frame: ErrorFrame): void {
    let id = frame.id ?? undefined;
    if (id === undefined && frame.generation !== undefined && frame.chat !== undefined) {
      return this.aliases.get(frame.chat)?.follower?.received(frame, this.now);
    }
    if (id === undefined && this.state === "ready" && frame.retry === "never" && UNREADABLE.test(frame.code)) id = this.unnamed(frame);
    if (id === undefined) {
      this.refusal = frame;
      return;
    }
    const opening = this.opens.get(id);
    const asked = this.stateGets.get(id);
    const found = this.write({ ...frame, id });
    if (opening) {
      this.opens.delete(id);
      if (opening.phase === "opening") this.followName(opening, () => opening.openRefused(frame, this.now));
    } else if (asked) {
      this.stateGets.delete(id);
      asked.held.statesRefused(asked.names, errorOf(frame));
    } else if (found) {
      found[0].writeRefused(found[1], frame, this.now);
      this.needsToken ||= frame.retry === "after-auth";
    } else this.answer(id, undefined, errorOf(frame));
  }

  /** The request that the server could not read. Throws `protocol-violation`, to find it among several. */
  private unnamed(frame: ErrorFrame): number | undefined {
    const waiting = [...this.asked(), ...this.subscriptions.flatMap((held) => held.lane.writes.filter(({ sent }) => sent).map(({ requestId }) => requestId))];
    const byOp = this.aliases.get(frame.chat ?? "")?.lane.writes.find(({ number }) => number === frame.op);
    const found = byOp?.requestId ?? (waiting.length === 1 ? waiting[0] : undefined);
    this.oneByOne = found === undefined && waiting.length > 0;
    if (this.oneByOne) throw new TellbackError("protocol-violation", "the server could not read a request and does not say which");
    return found;
  }

  /** Numbers of the opens and questions that wait for their answers. */
  private asked(): number[] {
    return [...this.opens.keys(), ...this.stateGets.keys(), ...[...this.questions].filter(([, { sent }]) => sent).map(([id]) => id)];
  }

  private answer(id: number | null | undefined, answer: any, error?: TellbackError): void {
    if (id === undefined || id === null) return;
    this.closes.get(id)?.();
    this.closes.delete(id);
    const question = this.questions.get(id);
    this.questions.delete(id);
    // The answer to a resend is this call's own.
    if (answer?.type === "ack" && question && question.asked > 1) delete answer.duplicate;
    question?.waiter(answer, error);
  }
}
