/* What a program can be told about a chat. Listeners are called in the step that changed something, after the change. */

import type { Conflict } from "./conflict.js";
import type { TellbackError } from "./errors.js";
import type { GenerationResult } from "./followed.js";
import type { Author, Version } from "./frames.js";
import type { Intent } from "./intents.js";
import type { Effect } from "./replica.js";

export type Status = "connecting" | "syncing" | "synced" | "offline" | "conflicted" | "read-only";
export type ConnectionStatus = "connecting" | "connected" | "offline" | "closed";

export interface ChatEvents {
  /** A commit was installed. `mine` is true for this client's own writes. */
  committed: { version: Version; effects: readonly Effect[]; by?: Author; mine: boolean; /** @internal */ intent?: Intent };
  /** What the chat shows, or which conflicts wait, may be different: a commit, an own write, an answer, a snapshot, an exit. */
  changed: {};
  status: { status: Status };
  /** The replica was replaced by a snapshot; whoever shows the chat reads it again. */
  replaced: { version: Version; reason: string; recovered: readonly string[]; kept: boolean };
  conflicted: { conflict: Conflict };
  /** This tab was too slow for the server, which held back the commits between two versions; they are fetched now. */
  behind: { from: Version; to: Version };
  renamed: { name: string; to: string };
  deleted: { chatId: string };
  /** The chat can no longer be opened; `code` is the server's. */
  gone: { code: string; message: string };
  "generation-started": { id: string; message: string; by: string };
  "generation-text": { id: string };
  "generation-ended": { id: string; result: GenerationResult; offered: boolean };
}

export type Told = { [Name in keyof ChatEvents]: { type: Name } & ChatEvents[Name] }[keyof ChatEvents];

export interface ClientEvents {
  connection: { status: ConnectionStatus; error?: TellbackError };
  /** `pending` or `conflicts` of the client may be different, also those of tabs that died, or `saved` has something to tell. */
  changed: {};
  /** A write waits for a decision, in any chat, and whoever asked for it: this page, or a tab that died. */
  conflicted: { conflict: Conflict };
}

/** Whether two lists hold the same things, for who tells of changes. */
export const same = (one: readonly unknown[], other: readonly unknown[]): boolean => one.length === other.length && one.every((item, index) => item === other[index]);

/** Whoever's function throws hears of it as of an error that nobody caught. */
export const report = (error: unknown): void => (globalThis.reportError ?? console.error)(error);

/** Listeners by name. One that throws is reported and harms nobody else. */
export class Emitter<Events> {
  private readonly listeners = new Map<unknown, Set<(event: any) => void>>();

  /** Call `listener` with every such event from now on; gives how to stop. */
  on<Name extends keyof Events>(name: Name, listener: (event: Events[Name]) => void): () => void {
    const held = this.listeners.get(name) ?? new Set();
    this.listeners.set(name, held.add(listener));
    return () => void held.delete(listener);
  }

  /** @internal */
  emit<Name extends keyof Events>(name: Name, event: Events[Name]): void {
    for (const listener of [...(this.listeners.get(name) ?? [])]) {
      try {
        listener(event);
      } catch (error) {
        report(error);
      }
    }
  }
}
