/* Writes that have no answer yet: in memory, and in a store that outlives the tab.

   - A write is in the store before its first byte is sent, and stays there until its answer is installed.
   - The same write is the same text: what was sent before a crash is sent again after it, number and all.
   - Who replays what a dead tab left is decided in `tabs`; a store only keeps. */

import type { NewChat, Restored, Version } from "./frames.js";
import type { Intent } from "./intents.js";
import type { Write } from "./replica.js";

/** A write that is stored. */
export interface WriteResult {
  /** Of the commit; of the chat when nothing had to change. */
  readonly version: Version;
  /** Ids of the appended messages. */
  readonly messageIds: readonly string[];
  /** Other commits came between the base and this write and did not touch the same thing. */
  readonly rebased: boolean;
  /** The server had stored it already; this is the answer to a resend. */
  readonly duplicate: boolean;
  /** False when there was nothing to change and nothing was sent. */
  readonly changed: boolean;
  /** The chat that a branch made. */
  readonly branch?: NewChat;
  readonly restored?: Restored;
  readonly linkedFrom: readonly string[];
}

/** One write on its way. The intent stays; number, base and text are those of the latest attempt. */
export class PendingWrite {
  attempts = 0;
  /** n of the op id. */
  number = 0;
  requestId = 0;
  write: Write | undefined;
  /** The frame. Never changed while the number stands. */
  data = "";
  targets: string[] = [];
  /** Sent on this connection, and not refused for a passing reason since. */
  sent = false;
  journaled = false;
  /** The confirmed chat already holds its effects, or it is known that there are none. */
  installed = false;
  /** The write it builds on was refused; so will this be. */
  doomed = false;

  constructor(readonly intent: Intent, readonly settle: (outcome: WriteResult | Error) => void = () => {}) {}
}

/** A write that an earlier tab left behind. */
export interface Entry {
  session: string;
  requestId: number;
  /** The owner's one text: a chat by its id. */
  owner: string;
  /** The frame, as it was sent. */
  data: string;
  conflicted?: boolean;
}

/** One change of a store. */
export type StoreChange = { put: Entry; replaces?: number } | { done: number } | { conflicted: number };
export type Record_ = StoreChange & { pending?: PendingWrite };

export interface Outbox {
  /** What a session left behind, in order. */
  load(session: string): Promise<Entry[]>;
  /** Sessions that have something here. */
  sessions(): Promise<string[]>;
  /** Make changes durable, all or nothing. */
  write(session: string, changes: readonly StoreChange[]): Promise<void>;
}

/** In the profile's IndexedDB: any tab of the profile finds what another one left behind. */
export class IndexedDbOutbox implements Outbox {
  private database: Promise<IDBDatabase> | undefined;

  constructor(private readonly name = "tellback-outbox") {}

  load(session: string): Promise<Entry[]> {
    return this.within("readonly", (store) => store.getAll(IDBKeyRange.bound([session], [session, []])));
  }

  async sessions(): Promise<string[]> {
    const keys = await this.within<IDBValidKey[]>("readonly", (store) => store.getAllKeys());
    return [...new Set(keys.map((key) => (key as [string])[0]))];
  }

  async write(session: string, changes: readonly StoreChange[]): Promise<void> {
    await this.within("readwrite", (store) => {
      for (const change of changes) {
        if ("put" in change) {
          if (change.replaces) store.delete([session, change.replaces]);
          store.put(change.put);
        } else if ("done" in change) store.delete([session, change.done]);
        else {
          const read = store.get([session, change.conflicted]);
          read.onsuccess = () => read.result && store.put({ ...read.result, conflicted: true });
        }
      }
    });
  }

  private open(): Promise<IDBDatabase> {
    return (this.database ??= new Promise((resolve, reject) => {
      const opening = indexedDB.open(this.name, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("writes", { keyPath: ["session", "requestId"] });
      opening.onsuccess = () => {
        opening.result.onversionchange = () => opening.result.close();
        opening.result.onclose = () => (this.database = undefined);
        resolve(opening.result);
      };
      opening.onerror = () => ((this.database = undefined), reject(opening.error));
    }));
  }

  private async within<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T> | void): Promise<T> {
    // Strict: written to the disk, not only handed to the operating system, where the browser can.
    const transaction = (await this.open()).transaction("writes", mode, { durability: "strict" });
    return new Promise((resolve, reject) => {
      const request = act(transaction.objectStore("writes"));
      transaction.oncomplete = () => resolve((request as IDBRequest<T> | undefined)?.result as T);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}
