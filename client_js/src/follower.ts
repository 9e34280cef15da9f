/* What may follow the replies of a chat, beside its messages. The SDK's core hands on what it does not read itself;
   `tellback/generations` is the follower that there is. Without one replies are still stored and shown like any message. */

import type { TellbackError } from "./errors.js";
import type { Ack, Error as ErrorFrame, ListedGeneration, ServerFrame, Version } from "./frames.js";
import type { Effect, Write } from "./replica.js";
import type { Subscription } from "./subscription.js";

export type GenerationFrame = Extract<ServerFrame, { type: `generation-${string}` }>;

export interface Follower {
  /** The chat is being opened: replies that run, or whose end this session has not acknowledged. */
  opened(listed: readonly ListedGeneration[]): void;
  /** A frame about a reply; an error that names one. */
  received(frame: GenerationFrame | ErrorFrame, now: number): void;
  /** The replica holds what the server does. */
  live(): void;
  /** A commit is going to be installed; what is given back is called when it is. */
  installing(version: Version, effects: readonly Effect[]): () => void;
  /** The own write that begins a reply was accepted. */
  began(write: Write, ack: Ack): void;
  /** Frames to send now; the chat is open on this connection. */
  collect(now: number): Write[];
  /** When `collect` has more to give although nothing happens. */
  readonly deadlines: number[];
  /** False while text has to go before the write. */
  maySend(write: Write): boolean;
  /** The write came before text that it needs. True when that text is sent again. */
  sendsAgain(write: Write): boolean;
  disconnected(): void;
  /** The chat is gone. */
  fail(error: TellbackError): void;
}

/** Who makes the follower of a chat, once one was loaded. */
export const following: { make?: (held: Subscription) => Follower } = {};
