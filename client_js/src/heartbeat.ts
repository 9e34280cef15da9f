/* When to ask whether the peer is still there, and when to wait before connecting again.

   - Any frame proves that the peer lives; only silence is answered with `ping`.
   - Waiting is drawn between nothing and a growing bound (full jitter), which falls back only after useful work.
   - A page that slept hears its timers late: silence counts from when it was asked, so a ping always gets its time. */

const PONG_TIMEOUT_MS = 10_000;

/** The silence of one connection. Times are of a monotonic clock. */
export class Heartbeat {
  private heardAt: number;
  private askedAt: number | undefined;

  constructor(now: number, private readonly idleMs: number) {
    this.heardAt = now;
  }

  heard(now: number): void {
    this.heardAt = now;
    this.askedAt = undefined;
  }

  /** Whether silence asks for a ping now: said once, and counts as sent. */
  due(now: number): boolean {
    const isDue = this.askedAt === undefined && now >= this.deadline;
    if (isDue) this.askedAt = now;
    return isDue;
  }

  /** A ping had no answer in time. Only asks: a ping that is due stays due. */
  isDead(now: number): boolean {
    return this.askedAt !== undefined && now >= this.deadline;
  }

  /** Ask at the next occasion: the page was asleep, or the network has changed. */
  doubt(): void {
    this.heardAt = -Infinity;
  }

  /** When `due` or `isDead` is true, if nothing is heard until then. */
  get deadline(): number {
    return this.askedAt !== undefined ? this.askedAt + PONG_TIMEOUT_MS : Math.max(0, this.heardAt + this.idleMs);
  }
}

/** How long to wait before the next attempt. */
export class Backoff {
  private attempts = 0;

  constructor(private readonly firstMs = 250, private readonly maxMs = 30_000) {}

  next(): number {
    return Math.random() * Math.min(this.maxMs, this.firstMs * 2 ** this.attempts++);
  }

  worked(): void {
    this.attempts = 0;
  }
}
