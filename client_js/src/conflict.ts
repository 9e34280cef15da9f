/* A write that was not carried out because somebody else was faster, and its three exits.

   - A conflict is part of the chat's state until an exit is taken; nothing leaves it by itself.
   - No exit overwrites in silence. */

import type { Chat } from "./chat.js";
import type { IntegrityFrame, Version } from "./frames.js";
import type { Handle } from "./handle.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { ChatDocument } from "./replica.js";
import type { Writes } from "./writes.js";

/** One write that waits for a decision. */
export class Conflict {
  /** @internal */
  constructor(
    private readonly held: Writes,
    readonly op: number,
    /** @internal */
    readonly requestId: number,
    /** @internal */
    readonly intent: Intent,
    readonly reason: string,
    readonly version: Version | null,
    /** What others did since, when the server still knows it. */
    readonly missed: readonly IntegrityFrame[] | undefined,
    /** The chat as this client saw it, own write included. */
    readonly mine: ChatDocument,
  ) {}

  /** The chat, character or preset that the write was for. */
  get handle(): Handle {
    return this.held.handle!;
  }

  /** Exit 1: drop the own write. */
  takeTheirs(): void {
    this.handle.takeTheirs(this);
  }

  /** Exit 2: ask for the own write again, made against the chat as it is now. */
  applyMineAgain(): Promise<WriteResult> {
    return this.handle.applyMineAgain(this);
  }

  /** Exit 3: a new chat `name` that holds mine. `exists` when the name is taken; then the conflict stays. */
  saveMineAs(name: string): Promise<Chat> {
    return this.handle.saveMineAs(this, name);
  }
}
