/* When to ask whether the peer is still there, and when to wait before connecting again.

   - Any frame proves that the peer lives; only silence is answered with `ping`.
   - Waiting is drawn between nothing and a growing bound (full jitter), which falls back only after useful work.
   - A page that slept hears its timers late: silence counts from when it was asked, so a ping always gets its time. */

const PONG_TIMEOUT_MS = 10_000;

/** The silence of one connection. Times are of a monotonic clock. */
export class Heartbeat {
  private heardAt: number;
  private askedAt: number | undefined;

  constructor(now: number, readonly idleMs: number, readonly timeoutMs = PONG_TIMEOUT_MS) {
    this.heardAt = now;
  }

  heard(now: number): void {
    this.heardAt = now;
    this.askedAt = undefined;
  }

  /** What silence asks for now. `ping` is said once and counts as sent. */
  due(now: number): "ping" | "dead" | undefined {
    if (this.askedAt !== undefined) return this.isDead(now) ? "dead" : undefined;
    if (now < this.heardAt + this.idleMs) return undefined;
    this.askedAt = now;
    return "ping";
  }

  /** A ping had no answer in time. Only asks: a ping that is due stays due. */
  isDead(now: number): boolean {
    return this.askedAt !== undefined && now >= this.askedAt + this.timeoutMs;
  }

  /** Ask at the next occasion: the page was asleep, or the network has changed. */
  doubt(): void {
    this.heardAt = -Infinity;
  }

  /** When `due` has something to say, if nothing is heard until then. */
  get deadline(): number {
    return this.askedAt !== undefined ? this.askedAt + this.timeoutMs : Math.max(0, this.heardAt + this.idleMs);
  }
}

/** How long to wait before the next attempt. */
export class Backoff {
  private attempts = 0;

  constructor(readonly firstMs = 250, readonly maxMs = 30_000, private readonly draw = Math.random) {}

  next(): number {
    return this.draw() * Math.min(this.maxMs, this.firstMs * 2 ** Math.min(this.attempts++, 32));
  }

  worked(): void {
    this.attempts = 0;
  }
}
