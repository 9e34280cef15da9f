/* One generation as a tab knows it: its text so far, what became of it, and of own text how far it has gone. */

import type { TellbackError } from "./errors.js";
import type { GenerationError, GenerationTarget, Salvage, Version } from "./frames.js";

/** What became of a generation. The chat holds it. */
export interface GenerationResult {
  readonly state: "stored" | "cancelled" | "failed" | "orphaned";
  readonly version: Version;
  readonly integrity: string;
  /** The chat holds what there was of the text, also of one that was stopped or failed. */
  readonly isStored: boolean;
  /** Id of the message that holds the text; null when there was none. */
  readonly message: string | null;
  readonly swipe: number | null;
  readonly error: GenerationError | undefined;
}

/** How far own text has gone. */
export class Sending {
  sent = 0;
  reasoningSent = 0;
  sentAt = 0;
  pausedUntil = 0;
  /** `sent` is what the server has on this connection, or will have. */
  isAligned = false;
  /** It is resumed: what the server has is taken for ours. */
  isFresh = false;
  isClosing = false;
  /** The server does not know it as running. */
  isOver = false;
  refusal: TellbackError | undefined;
}

/** One generation: its text so far, what became of it, and of own text how much was sent. */
export class Followed {
  text = "";
  reasoning = "";
  /** UTF-16 units of the text that survive a crash of the server. */
  durable = 0;
  result: GenerationResult | undefined;
  error: TellbackError | undefined;
  offered = false;
  sending: Sending | undefined;
  isAttaching = false;
  salvage: Salvage | undefined;
  /** The server did not take what it was given back: what it has is taken for ours. */
  gaveUp = false;
  readonly watchers = new Set<() => void>();

  constructor(readonly id: string, readonly target: GenerationTarget, readonly message: string, readonly by: string, readonly supersedes?: string) {}

  get isOver(): boolean {
    return this.result !== undefined || this.error !== undefined;
  }

  get isSent(): boolean {
    const { sending } = this;
    return !!sending && sending.sent === this.text.length && sending.reasoningSent === this.reasoning.length;
  }

  changed(): void {
    for (const watcher of [...this.watchers]) watcher();
  }
}
