/* The tabs of one profile: a session belongs to one live tab, and what a dead one left is sent by a live one.

     live tab      holds the lock of its session as long as it lives; the browser lets it go when the tab dies
     another tab   sees a session in the outbox, waits for its lock, and once it is free sends what is still there in the
                   name of that session: the same numbers and text, so that each write arrives once

   - The lock says who is alive, the outbox says what is left; nothing else is believed.
   - Without Web Locks (a page that is not served by https or from localhost) nobody is taken over: two tabs in one
     session would push each other out. */

import type { Client } from "./client.js";
import type { Entry, Outbox } from "./outbox.js";

const LOOK_MS = 5000;

type Locks = Pick<LockManager, "request">;

export class Tabs {
  /** Clients that speak for tabs that died. */
  readonly adopted: Client[] = [];
  private readonly busy = new Set<string>();
  private timer: ReturnType<typeof setInterval> | undefined;
  private release: () => void = () => {};
  private readonly stopped = new AbortController();

  constructor(
    private readonly url: string, private readonly session: string, private readonly outbox: Outbox, private readonly locks: Locks,
    private readonly speakFor: (session: string, entries: readonly Entry[]) => Client, private readonly tell: () => void,
  ) {}

  /** Take the own session's lock; then look after the others from time to time. */
  async start(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.locks.request(this.lock(this.session), () => (resolve(), new Promise<void>((release) => (this.release = release)))).catch(reject);
    });
    this.look();
    this.timer = setInterval(() => this.look(), LOOK_MS);
  }

  stop(): void {
    clearInterval(this.timer);
    this.release();
    this.stopped.abort();
    for (const client of [...this.adopted]) void client.close(0);
  }

  /** Speak for every session in the outbox that nobody alive holds. */
  look(): void {
    this.outbox.sessions().then((sessions) => {
      for (const session of sessions) if (session !== this.session && !this.busy.has(session)) void this.adopt(session);
    }, () => {});
  }

  private async adopt(session: string): Promise<void> {
    this.busy.add(session);
    try {
      await this.locks.request(this.lock(session), { signal: this.stopped.signal }, async () => {
        const entries = this.stopped.signal.aborted ? [] : await this.outbox.load(session);
        if (!entries.length) return;
        const client = this.speakFor(session, entries);
        this.adopted.push(client);
        try {
          await client.start();
          await client.settled();
        } finally {
          this.adopted.splice(this.adopted.indexOf(client), 1);
          this.tell();
        }
      });
    } catch {
      // The server could not be reached, or the tab is going: the outbox still has it.
    } finally {
      this.busy.delete(session);
    }
  }

  private lock(session: string): string {
    return `tellback ${this.url} ${session}`;
  }
}
