/* A generation as the user holds it: its text as it comes, its end; and of own ones how to write them.

     for await (const piece of chat.generation(id)) ...
     const reply = await chat.generate({ name: "User", is_user: true, mes: "And?" }, { reply: { name: "Alice" } });
     reply.push("Once "); await reply.end();

   Loading it gives chats the verbs of `Replies`; it is `tellback/generations`. */

import type { Followed, GenerationResult } from "./followed.js";
import { Generations, NAMESPACE } from "./generations.js";
import { Chat, inner, newMessageId, TellbackError } from "./index.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import { previewed } from "./preview.js";
import type { Message, Write } from "./replica.js";
import { fetched } from "./states.js";
import type { Subscription } from "./subscription.js";

export type { GenerationResult };

const { append, following, live, mixin, payload, refused } = inner;

export interface GenerateOptions {
  /** The fields of the message but its text. */
  reply?: object;
  /** The reply is one more swipe of this message. */
  swipeOf?: string;
  /** The reply goes on with this message. */
  continuing?: string;
  /** The generation that this is another try of. */
  supersedes?: string;
  /** How long the server waits for a producer that is gone, in `generate`: 1 to 300 s; of a fraction the next whole second. */
  leaseS?: number;
  generation?: string;
}

/** A reply that is being written, by anybody. */
export class Generation implements AsyncIterable<string> {
  /** @internal */
  constructor(protected readonly chat: Replies, protected readonly followed: Followed) {}

  get id(): string {
    return this.followed.id;
  }

  /** Id of the message that the text is for. */
  get message(): string {
    return this.followed.message;
  }

  get target() {
    return this.followed.target;
  }

  /** The session that began it. */
  get by(): string {
    return this.followed.by;
  }

  get text(): string {
    return this.followed.text;
  }

  get reasoning(): string {
    return this.followed.reasoning;
  }

  /** How much of the text survives a crash of the server, in UTF-16 units. */
  get durable(): number {
    return this.followed.durable;
  }

  get state(): "running" | GenerationResult["state"] {
    return this.followed.result?.state ?? "running";
  }

  get result(): GenerationResult | undefined {
    return this.followed.result;
  }

  /** What became of it, when the chat holds it. */
  async stored(): Promise<GenerationResult> {
    while (!this.followed.isOver) await this.changed();
    if (this.followed.error) throw this.followed.error;
    return this.followed.result!;
  }

  /** The text as it comes, from its beginning; ends when it has ended. Where another text took its place, all of it comes again. */
  async *[Symbol.asyncIterator](): AsyncIterator<string> {
    for (let told = ""; ; ) {
      const { text, isOver, error } = this.followed;
      if (text !== told) {
        const more = text.startsWith(told) ? text.slice(told.length) : text;
        told = text;
        if (more) yield more;
      } else if (error) throw error;
      else if (isOver) return;
      else await this.changed();
    }
  }

  /** Stop it, from any tab, with the text that the server has. */
  async cancel(): Promise<GenerationResult> {
    try {
      if (!this.followed.isOver) await this.chat.write(ending({ type: "generation-cancel", generation: this.id }));
    } catch (error) {
      if ((error as TellbackError).code !== "generation-ended") throw error;
    }
    return this.stored();
  }

  /** @internal */
  changed(): Promise<void> {
    return new Promise((resolve) => {
      const { watchers } = this.followed;
      const watcher = () => (watchers.delete(watcher), resolve());
      watchers.add(watcher);
    });
  }
}

/** A reply whose text comes from here. */
export class Producing extends Generation {
  private high = "";
  private isEnding = false;

  /** Put text behind the text so far. Throws `generation-over` when it has ended. */
  push(text: string, reasoning = ""): void {
    const { followed } = this;
    const refusal = followed.error ?? followed.sending?.refusal;
    if (refusal) throw refusal;
    if (followed.isOver || this.isEnding) throw new TellbackError("generation-over", `The generation has ended (${this.state}).`, { generation: this.id });
    // What a model cut between the halves of a surrogate pair is put together.
    const whole = this.high + text;
    this.high = /[\ud800-\udbff]$/.test(whole) ? whole.slice(-1) : "";
    this.take(payload(this.high ? whole.slice(0, -1) : whole, "/text"), payload(reasoning, "/reasoning"));
  }

  /** Ask how much the server has; when `resume` waits. */
  private take(text: string, reasoning: string): void {
    const { followed } = this;
    if (!text && !reasoning) return;
    followed.text += text;
    followed.reasoning += reasoning;
    this.chat.subscription.wake();
    followed.changed();
  }

  /** It is complete: store it, and wait until the chat holds it. `reply` adds to the fields of the start. */
  end(reply?: object): Promise<GenerationResult> {
    return this.ended(reply ? { reply: payload(reply, "/reply") } : {});
  }

  /** The model failed: store what there is, with a sentence that every tab may read. */
  fail(message: string, code = "failed"): Promise<GenerationResult> {
    return this.ended({ error: { code: code.slice(0, 64), message: message.slice(0, 2000) } });
  }

  private async ended(fields: object): Promise<GenerationResult> {
    const { followed, id: generation } = this;
    if (!followed.isOver) {
      if (!this.isEnding && this.high) this.take("\ufffd", "");
      this.isEnding = true;
      followed.sending!.isClosing = true;
      const lengths = followed.sending!.refusal ? {} : { length: followed.text.length, reasoning_length: followed.reasoning.length };
      try {
        await this.chat.write(ending({ type: "generation-end", generation, ...lengths, ...fields }));
      } catch (error) {
        if ((error as TellbackError).code !== "generation-ended") {
          // The server does not take the end as it is; the text is not to wait for it.
          this.chat.write(ending({ type: "generation-cancel", generation })).catch(() => {});
          throw error;
        }
      }
    }
    return this.stored();
  }
}

const ending = (write: Write): Intent => live(write, () => true);

/** The request that begins one. */
function beginning(type: "generation-start" | "generate", messages: object | readonly object[], options: GenerateOptions, more: object): Write {
  const { reply, swipeOf, continuing, supersedes, leaseS, generation = newMessageId() + newMessageId() } = options;
  if (swipeOf !== undefined && continuing !== undefined) throw new TypeError("a reply is a swipe or a continuation, not both");
  const [turn] = append(Array.isArray(messages) ? messages : [messages]).parts(undefined as never);
  const message = swipeOf ?? continuing;
  return {
    type, generation, ...more, target: message === undefined ? { kind: "message" } : { kind: swipeOf === undefined ? "continue" : "swipe", message },
    ...(turn ? { messages: turn.messages } : {}), ...(reply ? { reply: payload(reply, "/reply") } : {}),
    ...(supersedes === undefined ? {} : { supersedes }), ...(leaseS === undefined ? {} : { lease_s: Math.ceil(leaseS) }),
  };
}

/** Asked again when others came between, as long as the message it is for is there. */
const begin = (write: Write): Intent => live(write, (view) => !write.target.message || view().messages.has(write.target.message));

/** What a chat can do with replies. */
export abstract class Replies {
  /** @internal */
  abstract readonly subscription: Subscription;
  /** @internal */
  abstract write(intent: Intent): Promise<WriteResult>;

  /** Begin a reply whose text comes from here; `messages` are the user's turn. */
  async generate(messages: object | readonly object[] = [], options: GenerateOptions = {}): Promise<Producing> {
    const write = beginning("generation-start", messages, options, {});
    follower(this);
    await this.write(begin(write));
    return new Producing(this, followed(this, write.generation));
  }

  /** Have the server ask one of its model servers; this page may go away. */
  async generateFrom(upstream: string, body: object, messages: object | readonly object[] = [], options: GenerateOptions = {}): Promise<Generation> {
    const write = beginning("generate", messages, options, { upstream, body: payload(body, "/body") });
    follower(this);
    await this.write(begin(write));
    return this.generation(write.generation);
  }

  /** Produce the rest of a reply that this session began; `text` is what the server has. */
  async resume(id: string): Promise<Producing> {
    const one = followed(this, id);
    if (one.by !== this.subscription.session) throw refused("not-producer", "Another session produces this text.", "/generation");
    follower(this).resumed(one);
    const producing = new Producing(this, one);
    this.subscription.wake();
    while (one.sending!.isFresh && !one.isOver && !one.sending!.refusal) await producing.changed();
    return producing;
  }

  /** Those that run now, and results that were offered when this session came back. */
  get generations(): readonly Generation[] {
    return [...follower(this).known.values()].filter((one) => !one.isOver || one.offered).map((one) => new Generation(this, one));
  }

  /** The messages with the texts in progress where they will stand; `messages` has only what is stored. Asks the server the first time only. */
  async preview(): Promise<readonly Message[]> {
    const { subscription } = this;
    const { running } = follower(this);
    if (!running.length) return subscription.view().all;
    await fetched(subscription, NAMESPACE);
    return previewed(subscription.view(), subscription.view().states.get(NAMESPACE)?.data, follower(this).running);
  }

  /** One that runs, or that ended while this chat was open. */
  generation(id: string): Generation {
    return new Generation(this, followed(this, id));
  }
}

function follower(chat: Replies): Generations {
  const { subscription } = chat;
  if (!subscription.follower) {
    // The chat was opened before this was loaded: what runs is told when it is opened again.
    subscription.follower = new Generations(subscription);
    subscription.resync();
    subscription.wake();
  }
  return subscription.follower as Generations;
}

function followed(chat: Replies, id: string): Followed {
  const one = follower(chat).known.get(id);
  if (!one) throw refused("generation-unknown", `No generation ${id} is known here.`, "/generation");
  return one;
}

declare module "./chat.js" {
  interface Chat extends Omit<Replies, "subscription" | "write"> {}
}
mixin(Chat, Replies);
following.make = (held) => new Generations(held);
