/* The tabs of one profile: a session belongs to one live tab, and what a dead one left is sent by a live one.

     live tab      holds the lock of its session as long as it lives; the browser lets it go when the tab dies
     another tab   sees a session in the outbox, waits for its lock, and once it is free sends what is still there in the
                   name of that session: the same numbers and text, so that each write arrives once

   - The lock says who is alive, the outbox says what is left; nothing else is believed.
   - What was left for a chat that is gone stays in the outbox: `saved` tells it, and it is tried again when that chat is open here.
   - Without Web Locks (a page that is not served by https or from localhost) nobody is taken over: two tabs in one
     session would push each other out. */

import type { Client } from "./client.js";
import type { Entry, Outbox } from "./outbox.js";

const LOOK_MS = 5000;

type Locks = Pick<LockManager, "request">;

export class Tabs {
  private readonly busy = new Set<string>();
  /** Writes of the outbox whose chat was gone. */
  private readonly aside = new Set<string>();
  private timer: ReturnType<typeof setInterval> | undefined;
  private release: () => void = () => {};
  private readonly stopped = new AbortController();

  constructor(private readonly living: Client, private readonly outbox: Outbox, private readonly locks: Locks) {}

  /** Take the own session's lock; then look after the others from time to time. */
  async start(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.locks.request(this.lock(this.living.session), () => (resolve(), new Promise<void>((release) => (this.release = release)))).catch(reject);
    });
    this.look();
    this.timer = setInterval(() => this.look(), LOOK_MS);
  }

  stop(): void {
    clearInterval(this.timer);
    this.release();
    this.stopped.abort();
    for (const client of [...this.living.adopted]) void client.close(0);
  }

  /** Speak for every session in the outbox that nobody alive holds. */
  look(): void {
    this.outbox.sessions().then((sessions) => {
      for (const session of sessions) if (session !== this.living.session && !this.busy.has(session)) void this.adopt(session);
    }, () => {});
  }

  private async adopt(session: string): Promise<void> {
    const { living, aside, outbox } = this;
    this.busy.add(session);
    try {
      await this.locks.request(this.lock(session), { signal: this.stopped.signal }, async () => {
        const entries = this.stopped.signal.aborted ? [] : await outbox.load(session);
        if (entries.every((entry) => aside.has(keyOf(entry)) && !living.holds(entry.owner))) return;
        const client = living.speakFor(session, outbox, entries);
        living.adopted.push(client);
        try {
          await client.start();
          living.untold.push(...(await client.settled()));
          for (const entry of await outbox.load(session)) aside.add(keyOf(entry));
        } finally {
          living.adopted.splice(living.adopted.indexOf(client), 1);
          living.tell();
        }
      });
    } catch {
      // The server could not be reached, or the tab is going: the outbox still has it.
    } finally {
      this.busy.delete(session);
    }
  }

  private lock(session: string): string {
    return `tellback ${this.living.url} ${session}`;
  }
}

const keyOf = ({ session, requestId }: Entry): string => `${session} ${requestId}`;
