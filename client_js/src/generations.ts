/* The generations of one open chat as this client knows them, without I/O: frames in; texts, results and frames out.

     unknown --commit, opened, generation-started--> running --the commit that ends it--> ended
                                                        `--the chat is gone, or knows nothing of it--> lost

   - What became of a generation is read from the chat's document, in the commit that says so; a frame that says it first
     only makes this look. So a result is there when the replica holds it, and is acknowledged then.
   - Text has an offset. What is there already is left out, a gap is filled by attaching, another text replaces ours.
   - Own text goes out behind what the server said it has on this connection; the end goes out behind all of it.
   - Text in progress is no part of the confirmed chat. */

import type { TellbackError } from "./errors.js";
import type { Told } from "./events.js";
import { Followed, Sending } from "./followed.js";
import type { Follower, GenerationFrame } from "./follower.js";
import type { Ack, Error as ErrorFrame, GenerationDeltaFrame, GenerationStarted, GenerationTarget, ListedGeneration, Salvage, Version } from "./frames.js";
import { inner } from "./index.js";
import type { ChatDocument, Effect, Write } from "./replica.js";
import { sha256 } from "./sha256.js";
import { want } from "./states.js";
import type { Subscription } from "./subscription.js";

const { errorOf, isObject, refused } = inner;

/** Own text that comes faster goes together. */
const PAUSE_MS = 10;
const CHUNK_UNITS = 16 << 10;
const SALVAGE_UNITS_MAX = 256 << 10;
const ENDED_MAX = 64;
/** The state document of a chat that says what became of its generations. */
export const NAMESPACE = "tellback_generations";

type Listed = { target: GenerationTarget; message: string; by: string; supersedes?: string };

/** What of an open chat is needed to follow its replies. */
type Followable = Pick<Subscription, "session" | "address" | "phase" | "replica" | "wake"> & { events: Told[] };

export class Generations implements Follower {
  /** In the order in which they were heard of. */
  readonly known = new Map<string, Followed>();
  /** What became of them is to be looked up in the document. */
  private missing = new Set<string>();
  private readonly toAttach = new Set<string>();
  /** Integrities of the commits that ended them. */
  private readonly toAck = new Map<string, string>();

  constructor(private readonly held: Followable) {}

  get running(): Followed[] {
    return [...this.known.values()].filter((one) => !one.isOver);
  }

  get produced(): Followed[] {
    return this.running.filter((one) => one.sending);
  }

  // -- what the server tells

  /** The chat is being opened: what runs, and results that this session has not acknowledged. */
  opened(listed: readonly ListedGeneration[]): void {
    for (const listing of listed) {
      const runs = listing.state === "running";
      const one = this.heardOf(listing.id, listing as Listed, runs);
      if (runs) this.textSoFar(one, listing.text ?? "", listing.reasoning ?? "", listing.durable);
      else if (!one.result) {
        one.offered = true;
        this.missing.add(one.id);
      } else if (listing.integrity) this.toAck.set(one.id, listing.integrity); // What was acknowledged did not arrive.
    }
    for (const one of this.running) if (!listed.some(({ id }) => id === one.id)) this.missing.add(one.id);
    for (const id of this.missing) {
      const sending = this.known.get(id)?.sending;
      if (sending) sending.isOver = true;
    }
  }

  received(frame: GenerationFrame | ErrorFrame, now: number): void {
    switch (frame.type) {
      case "generation-started":
        return this.started(frame);
      case "generation-delta":
        return this.delta(frame);
      case "error":
        this.refused(frame, now);
        break;
      default:
        this.ended(frame.generation);
    }
    this.live();
  }

  private started(frame: GenerationStarted): void {
    const one = this.heardOf(frame.generation, frame as Listed);
    if (!one.isOver) this.textSoFar(one, frame.text ?? "", frame.reasoning ?? "", frame.durable);
  }

  private delta(frame: GenerationDeltaFrame): void {
    const one = this.known.get(frame.generation);
    if (!one) return void this.toAttach.add(frame.generation);
    if (one.isOver) return;
    one.durable = Math.max(one.durable, frame.durable ?? 0);
    if (one.sending) return;
    const text = joined(one.text, frame.offset ?? 0, frame.text ?? "");
    const reasoning = joined(one.reasoning, frame.reasoning_offset ?? 0, frame.reasoning ?? "");
    // A gap, or another text than ours: the whole text tells.
    if (text === undefined || reasoning === undefined) return void this.toAttach.add(one.id);
    if (text !== one.text || reasoning !== one.reasoning) this.become(one, text, reasoning);
  }

  /** When no commit has said so it has to be looked up. */
  private ended(id: string): void {
    if (this.known.get(id)?.isOver === false) this.missing.add(id);
  }

  /** Text, a question or an acknowledgement was refused; none of them has a number. */
  private refused(frame: ErrorFrame, now: number): void {
    const one = this.known.get(frame.generation ?? "");
    if (!one || one.isOver || frame.code === "version-unknown") return;
    one.isAttaching = false;
    const { sending } = one;
    if (/^generation-(ended|unknown)$/.test(frame.code)) {
      // The commit that ended it is on its way.
      if (sending) sending.isOver = true;
      if (frame.code === "generation-unknown") this.missing.add(one.id);
    } else if (!sending) {
      if (one.salvage) {
        one.salvage = undefined;
        one.gaveUp = true;
        this.toAttach.add(one.id);
      }
    } else if (/^(generation-gap|overloaded)$/.test(frame.code) || /^(backoff|now)$/.test(frame.retry)) {
      sending.pausedUntil = Math.max(sending.pausedUntil, now + (frame.after_ms ?? 0));
      this.realign(one);
    } else {
      sending.refusal = errorOf(frame);
      one.changed();
    }
  }

  /** Ask how much of the own text the server has, and go on from there. */
  private realign(one: Followed): void {
    if (one.sending) one.sending.isAligned = false;
    this.toAttach.add(one.id);
  }

  // -- commits

  installing(version: Version, effects: readonly Effect[]): () => void {
    const { document } = this.held.replica!;
    const before = this.before(effects, document);
    return () => this.committed(version, effects, document, before);
  }

  /** What messages say now that a commit to come goes on with. */
  private before(effects: readonly Effect[], document: ChatDocument): Map<string, string> {
    const found = new Map<string, string>();
    for (const [id, entry] of entriesTold(effects)) {
      const text = entry?.state !== "running" && entry?.target.kind === "continue" ? said(document, entry)[0] : undefined;
      if (text !== undefined) found.set(id, text);
    }
    return found;
  }

  private committed(version: Version, effects: readonly Effect[], document: ChatDocument, before: ReadonlyMap<string, string>): void {
    for (const [id, entry] of entriesTold(effects)) {
      if (!entry) {
        const one = this.known.get(id);
        if (one) this.lose(one, unknown());
        continue;
      }
      const one = this.heardOf(id, entry);
      if (entry.state !== "running") this.settle(one, entry, version, document, before.get(id));
    }
  }

  /** Find out what became of generations whose end was not heard. */
  live(): void {
    const { phase, replica } = this.held;
    if (phase !== "live") return;
    this.missing = new Set([...this.missing].filter((id) => this.known.get(id)?.isOver === false));
    if (!this.missing.size) return;
    if (replica!.document.states.has(NAMESPACE)) this.lookUp();
    else want(this.held as Subscription, NAMESPACE, (error) => (error ? this.notFound(error) : this.lookUp()));
  }

  /** The document is there: what became of those that are missing. */
  private lookUp(): void {
    const replica = this.held.replica!;
    const { version, data } = replica.document.states.get(NAMESPACE)!;
    // It was asked for and is newer than the replica: the commits that come tell.
    if (version && !replica.knows(version)) return;
    const missing = this.missing;
    this.missing = new Set();
    for (const id of missing) {
      const one = this.known.get(id)!;
      const entry: any = isObject(data) && Object.hasOwn(data, id) ? data[id] : undefined;
      if (one.isOver) continue;
      if (!entry) this.lose(one, unknown());
      else if (entry.state === "running") {
        if (one.sending) one.sending.isOver = false;
        this.realign(one);
      } else this.settle(one, entry, replica.head, replica.document, undefined);
    }
  }

  /** The document cannot be read. */
  private notFound(error: TellbackError): void {
    for (const id of this.missing) this.lose(this.known.get(id)!, error);
    this.missing.clear();
  }

  private settle(one: Followed, entry: any, version: Version, document: ChatDocument, before: string | undefined): void {
    const { integrity = "", message, error, state } = entry;
    if (entry.by === this.held.session && integrity && !entry.acked?.includes(this.held.session)) this.toAck.set(one.id, integrity);
    if (one.isOver) return;
    const isStored = entry.stored === true;
    if (isStored) {
      let [text, reasoning] = said(document, entry);
      if (entry.target.kind === "continue" && message === entry.target.message) {
        text = text !== undefined && before !== undefined && text.startsWith(before) ? text.slice(before.length) : undefined;
        reasoning = undefined;
      }
      one.text = text ?? one.text;
      one.reasoning = reasoning ?? one.reasoning;
    }
    const swipe = isStored && typeof entry.swipe === "number" ? entry.swipe : null;
    one.result = { state, version, integrity, isStored, message: isStored ? message : null, swipe, error };
    this.held.events.push({ type: "generation-ended", id: one.id, result: one.result, offered: one.offered });
    one.changed();
  }

  private lose(one: Followed, error: TellbackError): void {
    if (one.isOver) return;
    one.error = error;
    one.changed();
  }

  // -- sending

  /** The own start was accepted on this connection: its text comes from here. */
  began(write: Write, { message = "" }: Ack): void {
    const one = this.heardOf(write.generation, { target: write.target, message, by: this.held.session });
    one.sending = new Sending();
    one.sending.isAligned = true;
    one.changed();
  }

  /** Text of this session comes from here again, behind what the server has. */
  resumed(one: Followed): void {
    one.sending = new Sending();
    one.sending.isFresh = true;
    this.realign(one);
  }

  collect(now: number): Write[] {
    const chat = this.held.address;
    const frames: Write[] = [...this.toAck].map(([generation, integrity]) => ({ type: "generation-ack", chat, generation, integrity }));
    this.toAck.clear();
    for (const generation of this.toAttach) {
      const one = this.known.get(generation);
      if (one && (one.isOver || one.isAttaching)) continue;
      frames.push({ type: "generation-attach", chat, generation, ...(one?.salvage && !one.sending ? { salvage: one.salvage } : {}) });
      if (one) one.isAttaching = true;
    }
    this.toAttach.clear();
    for (const one of this.produced) {
      const sending = one.sending!;
      if (!sending.isAligned || sending.isOver || sending.refusal || now < sending.pausedUntil) continue;
      if (!sending.isClosing && now < sending.sentAt + PAUSE_MS) continue;
      while (!one.isSent) {
        const { sent, reasoningSent } = sending;
        const text = piece(one.text, sent);
        const reasoning = piece(one.reasoning, reasoningSent);
        frames.push({ type: "generation-delta", chat, generation: one.id, offset: sent, text, reasoning_offset: reasoningSent, reasoning });
        sending.sent += text.length;
        sending.reasoningSent += reasoning.length;
        sending.sentAt = now;
      }
    }
    return frames;
  }

  maySend(write: Write): boolean {
    if (write.type !== "generation-end" && write.type !== "generation-cancel") return true;
    const one = this.known.get(write.generation);
    const sending = one?.sending;
    return !one || !sending || one.isOver || sending.isOver || !!sending.refusal || (sending.isAligned && one.isSent);
  }

  sendsAgain(write: Write): boolean {
    const one = this.known.get(write.generation);
    if (!one?.sending || write.type !== "generation-end") return false;
    this.realign(one);
    return true;
  }

  get deadlines(): number[] {
    return this.produced.filter((one) => one.sending!.isAligned && !one.isSent).map(({ sending }) => Math.max(sending!.sentAt + PAUSE_MS, sending!.pausedUntil));
  }

  /** The next `opened` says where everything stands. */
  disconnected(): void {
    this.toAttach.clear();
    this.toAck.clear();
    for (const one of this.running) {
      one.isAttaching = false;
      if (one.sending) Object.assign(one.sending, { isAligned: false, pausedUntil: 0 });
    }
  }

  fail(error: TellbackError): void {
    for (const one of this.running) this.lose(one, error);
  }

  // -- inside

  private heardOf(id: string, { target, message, by, supersedes }: Listed, runs = true): Followed {
    const known = this.known.get(id);
    if (known) return known;
    const ended = [...this.known.values()].filter((one) => one.isOver);
    if (ended.length >= ENDED_MAX) this.known.delete(ended[0]!.id);
    const one = new Followed(id, target, message, by, supersedes);
    this.known.set(id, one);
    if (runs) this.held.events.push({ type: "generation-started", id, message, by });
    return one;
  }

  private textSoFar(one: Followed, text: string, reasoning: string, durable = 0): void {
    one.isAttaching = false;
    one.durable = durable;
    const { sending } = one;
    if (sending) {
      if (sending.isFresh) Object.assign(one, { text, reasoning });
      else if (!one.text.startsWith(text) || !one.reasoning.startsWith(reasoning)) {
        sending.refusal = refused("generation-mismatch", "The server has another text than this program sent.");
      }
      Object.assign(sending, { sent: text.length, reasoningSent: reasoning.length, isAligned: true, isFresh: false });
      return one.changed();
    }
    const isOurs = !one.gaveUp && one.text.startsWith(text) && one.reasoning.startsWith(reasoning);
    one.gaveUp = false;
    one.salvage = isOurs ? salvageOf(one, text, reasoning) : undefined;
    if (one.salvage) {
      this.toAttach.add(one.id);
      this.held.wake();
    }
    this.become(one, isOurs ? one.text : text, isOurs ? one.reasoning : reasoning);
  }

  private become(one: Followed, text: string, reasoning: string): void {
    Object.assign(one, { text, reasoning });
    this.held.events.push({ type: "generation-text", id: one.id });
    one.changed();
  }
}

/** `text` with `more` at `offset`; undefined for a gap, or another text than is there. */
function joined(text: string, offset: number, more: string): string | undefined {
  const overlapping = text.slice(offset, offset + more.length);
  return offset > text.length || !more.startsWith(overlapping) ? undefined : text + more.slice(overlapping.length);
}

/** What a crash took from the server and this client still has; undefined when there is nothing, or too much of it. */
function salvageOf(one: Followed, text: string, reasoning: string): Salvage | undefined {
  const more = one.text.slice(text.length);
  const thought = one.reasoning.slice(reasoning.length);
  if (!(more || thought) || more.length + thought.length > SALVAGE_UNITS_MAX) return undefined;
  const digest = (prefix: string) => sha256(new TextEncoder().encode(prefix));
  return {
    offset: text.length, text: more, prefix_sha256: digest(text),
    ...(thought ? { reasoning_offset: reasoning.length, reasoning: thought, reasoning_prefix_sha256: digest(reasoning) } : {}),
  };
}

/** A chunk behind `start` that cuts no surrogate pair. */
function piece(text: string, start: number): string {
  const end = start + CHUNK_UNITS;
  return text.slice(start, /[\ud800-\udbff]/.test(text[end - 1] ?? "") ? end - 1 : end);
}

/** What a commit says of generations, undefined of one that it took away. */
function entriesTold(effects: readonly Effect[]): Map<string, any> {
  const told = new Map<string, any>();
  for (const effect of effects) {
    if (effect.op !== "state" || effect.namespace !== NAMESPACE) continue;
    for (const [id, entry] of Object.entries(effect.data ?? {})) told.set(id, entry);
    for (const { path, value } of (effect.patch ?? []) as any[]) {
      const [, id, ...deeper] = path.split("/");
      if (id !== undefined && !deeper.length) told.set(id.replaceAll("~1", "/").replaceAll("~0", "~"), value);
    }
  }
  return told;
}

/** Text and reasoning of the message, or of its swipe, that a generation was stored in. */
function said(document: ChatDocument, entry: any): [string | undefined, string | undefined] {
  const message = document.messages.get(entry.message);
  if (!message) return [undefined, undefined];
  const asText = (value: unknown) => (typeof value === "string" ? value : undefined);
  const isOther = typeof entry.swipe === "number" && entry.swipe !== (message.swipe_id ?? 0);
  const text = isOther ? message.swipes?.[entry.swipe] : (asText(message.mes) ?? message.content);
  const extra = isOther ? message.swipe_info?.[entry.swipe]?.extra : message.extra;
  return [asText(text), asText(extra?.reasoning)];
}

const unknown = () => refused("generation-unknown", "The chat knows nothing of this generation any more.");
