/* The socket under a link: connect, carry text both ways, connect again. It decides nothing that the link can decide.

   - Reading never waits for anything but the socket.
   - Writes are in the outbox before they are sent, in groups.
   - Close codes 4500-4999 end the link; everything else is tried again after a while that is drawn at random. */

import { closed, TellbackError } from "./errors.js";
import { report, type ConnectionStatus } from "./events.js";
import { Backoff } from "./heartbeat.js";
import type { Link } from "./link.js";
import type { Outbox } from "./outbox.js";

const CONNECT_TIMEOUT_MS = 10_000;

/** A token, or a function that fetches a fresh one before each connection. */
export type Token = string | null | (() => Promise<string>);

/** What of a WebSocket is used: the browser's, or that of the npm package `ws`. */
export type SocketKind = new (url: string, protocols: string[]) => {
  onopen: any;
  onmessage: any;
  onclose: any;
  onerror: any;
  send(text: string): void;
  close(): void;
};

const now = () => performance.now();

export class Connection {
  status: ConnectionStatus = "connecting";
  private readonly backoff = new Backoff();
  private socket: InstanceType<SocketKind> | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private recording: Promise<void> = Promise.resolve();
  private scheduled = false;
  private stopped = false;
  private authenticating = false;

  constructor(
    private readonly url: string, private readonly link: Link, private readonly fetchToken: (() => Promise<string>) | undefined,
    private readonly outbox: Outbox | null, private readonly kind: SocketKind, private readonly tell: () => void,
  ) {}

  /** Connect now, instead of after the backoff; and doubt a connection that may have died while the page slept. */
  reconnect = (): void => {
    if (this.retry !== undefined) this.connect();
    else if (this.status === "connected") {
      this.link.heartbeat?.doubt();
      this.wake();
    }
  };

  connect = (): void => {
    clearTimeout(this.retry);
    this.retry = undefined;
    if (this.stopped || this.link.error || this.socket) return;
    this.set("connecting");
    if (!this.fetchToken) return this.dial();
    this.fetchToken().then((token) => ((this.link.token = token), this.dial()), () => this.again());
  };

  private dial(): void {
    if (this.stopped || this.socket) return;
    let socket: InstanceType<SocketKind>;
    try {
      socket = new this.kind(this.url, ["tellback.v1"]);
    } catch (error) {
      this.link.fail(new TellbackError("connection-lost", String(error)));
      return this.set("closed");
    }
    this.socket = socket;
    const giveUp = setTimeout(() => this.drop(socket), CONNECT_TIMEOUT_MS);
    socket.onopen = () => {
      clearTimeout(giveUp);
      if (this.socket !== socket) return socket.close();
      this.link.connected(now());
      this.wake();
    };
    socket.onmessage = ({ data }: { data: unknown }) => {
      if (this.socket !== socket) return;
      try {
        this.link.received(String(data), now());
      } catch (error) {
        if (!(error instanceof TellbackError)) report(error);
        return this.drop(socket);
      }
      if (this.link.state === "ready") this.status = "connected";
      if (this.link.goaway) this.drop(socket);
      else this.wake();
      this.tell();
    };
    socket.onerror = () => {};
    socket.onclose = ({ code, reason }: { code: number; reason: string }) => {
      clearTimeout(giveUp);
      if (this.socket === socket) this.lost(code, reason);
    };
  }

  /** End a connection without waiting for the peer. */
  private drop(socket: InstanceType<SocketKind>): void {
    socket.close();
    if (this.socket === socket) this.lost(1006, "");
  }

  private lost(code: number, reason: string): void {
    this.socket = undefined;
    clearTimeout(this.timer);
    const { goaway, useful, refusal } = this.link;
    const error = closed(code, refusal?.message ?? reason);
    this.link.disconnected();
    // A fresh token is fetched before the next attempt.
    if (error && !(code === 4502 && this.fetchToken)) this.link.fail(error);
    if (useful) this.backoff.worked();
    if (this.link.error || this.stopped) return this.set("closed");
    this.again(goaway?.after_ms);
  }

  private again(afterMs = 0): void {
    if (this.stopped) return;
    this.retry = setTimeout(this.connect, afterMs + this.backoff.next());
    this.set("offline");
  }

  private set(status: ConnectionStatus): void {
    this.status = status;
    this.tell();
  }

  /** The link has something to send or to record. Never waits. */
  wake = (): void => {
    if (this.scheduled) return;
    this.scheduled = true;
    queueMicrotask(() => {
      this.scheduled = false;
      this.step();
    });
  };

  private step(): void {
    const records = this.link.journal();
    if (this.outbox && records.length) {
      // The text and nothing else is kept; changes stay in order.
      const changes = records.map(({ pending: _, ...change }) => change);
      this.recording = this.recording
        .then(() => this.outbox!.write(this.link.session, changes))
        .then(() => (this.link.journaled(records), this.wake()))
        .catch((error) => {
          // Nothing more may be sent that would not outlive the tab.
          if (this.link.error) return;
          this.link.fail(new TellbackError("outbox", String(error)));
          this.stop();
        });
    }
    const { socket, link } = this;
    clearTimeout(this.timer);
    if (!socket || link.state === "offline" || link.state === "closed") return;
    if (link.isDead(now())) return this.drop(socket);
    if (link.needsToken && this.fetchToken && !this.authenticating) {
      this.authenticating = true;
      this.fetchToken().then((token) => link.authenticate(token), () => {}).finally(() => ((this.authenticating = false), this.wake()));
    }
    for (const frame of link.collect(now())) socket.send(frame);
    // Somebody may be told of a write that was refused here.
    this.tell();
    const { deadline } = link;
    if (deadline !== undefined) this.timer = setTimeout(this.wake, Math.max(0, deadline - now()) + 1);
  }

  /** Wait until what was recorded is durable. */
  async recorded(): Promise<void> {
    this.step();
    await this.recording;
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.retry);
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = undefined;
    socket?.close();
    this.link.disconnected();
    this.set("closed");
  }
}
