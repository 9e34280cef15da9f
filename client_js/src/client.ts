/* The client: one session on one server, any number of chats.

     const client = await connect("ws://127.0.0.1:8765/ws");
     const chat = await client.open("character:Alice/First meeting", { create: true });
     await chat.append({ name: "User", is_user: true, mes: "hi" });

   - The session is new for every page; it is kept through every reconnect. What an earlier page left in the outbox is sent
     by another connection in its own name (`tabs`).
   - Closing flushes: what was asked for is acknowledged first, as long as the server can be reached in time. */

import { Chat } from "./chat.js";
import type { Conflict } from "./conflict.js";
import { Connection, type SocketKind, type Token } from "./connection.js";
import { refused, TellbackError } from "./errors.js";
import { Emitter, same, type ClientEvents, type ConnectionStatus } from "./events.js";
import type { Limits, ModelServer } from "./frames.js";
import { Handle } from "./handle.js";
import { newSession, ownerNamed, textOf, type OwnerName } from "./ids.js";
import { Link, type Waiter } from "./link.js";
import { IndexedDbOutbox, type Entry, type Outbox } from "./outbox.js";
import type { Write } from "./replica.js";
import type { Subscription } from "./subscription.js";
import { Tabs } from "./tabs.js";
import { text } from "./values.js";

export interface ConnectOptions {
  token?: Token;
  /** Who writes; a program that gives its own keeps its place in the op numbers. */
  session?: string;
  /** Where writes without an answer are kept. Without it the profile's IndexedDB, where there is one; null for nowhere. */
  outbox?: Outbox | null;
  /** Who of the outbox is alive; without it the browser's Web Locks. */
  locks?: Pick<LockManager, "request">;
  /** 0 does not wait for the server at all, so that one can start offline. */
  connectTimeoutMs?: number;
  /** The browser's own, or that of the npm package `ws`. */
  WebSocket?: SocketKind;
  /** Ask the user before a page is left that has something unsaved. */
  guard?: boolean;
}

/** What a tab that died left behind, and who speaks for it. */
interface Left {
  outbox: Outbox;
  entries: readonly Entry[];
  living: Client;
}

/** A client, connected. Throws `connection-lost` when there is no server in time, and what closed the client. */
export async function connect(url: string, options: ConnectOptions = {}): Promise<Client> {
  const client = new Client(url, options);
  await client.start();
  return client;
}

export class Client {
  readonly session: string;
  /** @internal Clients that speak for tabs that died. */
  readonly adopted: Client[] = [];
  /** @internal Why writes that were left cannot be sent, until `saved` told it. */
  readonly untold: TellbackError[] = [];
  private readonly link: Link;
  private readonly connection: Connection;
  private readonly tabs: Tabs | undefined;
  private readonly outbox: Outbox | null | undefined;
  private readonly emitter = new Emitter<ClientEvents>();
  private readonly unlisten: (() => void)[] = [];
  private waiters: (() => void)[] = [];
  private told: ConnectionStatus = "connecting";
  private seen: readonly unknown[] = [0];

  /** @internal Use `connect`. */
  constructor(readonly url: string, private readonly options: ConnectOptions, private readonly left?: Left) {
    const { session = newSession(), token = null, WebSocket: kind = globalThis.WebSocket as SocketKind | undefined } = options;
    if (!kind) throw new TypeError("there is no WebSocket here: give the one of the npm package ws");
    this.session = session;
    const outbox = (this.outbox = left?.outbox ?? (options.outbox === undefined && typeof indexedDB !== "undefined" ? new IndexedDbOutbox(`tellback ${url}`) : options.outbox));
    const fetchToken = typeof token === "function" ? token : undefined;
    this.link = new Link(session, fetchToken ? null : (token as string | null), !!outbox, () => this.wake());
    this.connection = new Connection(url, this.link, fetchToken, outbox ?? null, kind, () => this.tell());
    const locks = options.locks ?? globalThis.navigator?.locks;
    if (left) this.link.restore(left.entries);
    else if (outbox && locks) {
      this.tabs = new Tabs(this, outbox, locks);
    }
  }

  /** @internal */
  async start(): Promise<void> {
    this.tabs && (await this.tabs.start());
    this.listen();
    // What was left in a session that the program gave.
    if (this.options.session && !this.left) {
      await this.outbox?.load(this.session).then((entries) => this.link.restore(entries), (error) => this.end(new TellbackError("outbox", String(error))));
    }
    this.connection.connect();
    const { connectTimeoutMs = 10_000 } = this.options;
    if (!connectTimeoutMs) return;
    const timer = setTimeout(() => this.end(new TellbackError("connection-lost", `no connection to ${this.url} within ${connectTimeoutMs} ms`)), connectTimeoutMs);
    try {
      await this.connected();
    } finally {
      clearTimeout(timer);
    }
  }

  /** Wait for a connection. Throws what closed the client. */
  async connected(): Promise<void> {
    while (this.status !== "connected" && this.status !== "closed") await this.changed();
    if (this.link.error) throw this.link.error;
  }

  /** Wait for the answers to all own writes, then end. What has none in time stays in the outbox. */
  async close(flushTimeoutMs = 10_000): Promise<void> {
    let isLate = !flushTimeoutMs;
    const timer = setTimeout(() => ((isLate = true), this.tell()), flushTimeoutMs);
    while (!this.link.error && this.pending && !isLate) await this.changed();
    clearTimeout(timer);
    await this.connection.recorded();
    this.end(new TellbackError("client-closed", "the client is closed"));
  }

  /** @internal Wait until nothing is pending and no conflict waits, then end. Gives why writes could not be sent; throws what
      closed the client. */
  async settled(): Promise<TellbackError[]> {
    while (!this.link.error && (this.pending || this.conflicts.length)) await this.changed();
    if (this.link.error) throw this.link.error;
    await this.close(0);
    return this.untold;
  }

  private end(error: TellbackError): void {
    for (const stop of this.unlisten.splice(0)) stop();
    this.tabs?.stop();
    if (!this.link.error) this.link.fail(error);
    this.connection.stop();
  }

  // -- what is there

  get status(): ConnectionStatus {
    return this.connection.status;
  }

  /** What closed the client. */
  get error(): TellbackError | undefined {
    return this.link.error;
  }

  get user(): string {
    return this.link.user;
  }

  get limits(): Limits {
    return this.link.limits;
  }

  /** The model servers that `chat.generateFrom` can ask here. */
  get upstreams(): readonly ModelServer[] {
    return this.link.upstreams;
  }

  /** Own writes without an answer, in all chats, and those of tabs that died. */
  get pending(): number {
    return this.writers.reduce((sum, { pending }) => sum + pending, 0);
  }

  /** Own writes that wait for a decision, in all chats, and those of tabs that died. */
  get conflicts(): readonly Conflict[] {
    return this.writers.flatMap(({ conflicts }) => conflicts);
  }

  private get writers(): readonly { pending: number; conflicts: readonly Conflict[] }[] {
    return [...this.link.subscriptions, ...this.adopted];
  }

  /** Wait until no own write is without an answer, in all chats. Throws `conflict` when one waits for a decision, what closed the
      client, and, once, what ended a chat for which a tab that died, or this session before, left writes. Another chat that is gone is nothing to wait
      for: its writes were answered, or are conflicts. */
  async saved(): Promise<void> {
    // A conflict is told at once, whatever others still wait for.
    await Promise.all(this.link.subscriptions.map((held) => this.handle(held).answered()));
    const error = this.link.error ?? this.untold.shift();
    if (error) throw error;
  }

  on<Name extends keyof ClientEvents>(name: Name, listener: (event: ClientEvents[Name]) => void): () => void {
    return this.emitter.on(name, listener);
  }

  /** Connect now instead of after the backoff. */
  reconnect(): void {
    this.connection.reconnect();
  }

  // -- owners

  /** Open a chat: `character:<character>/<chat>`, `group:<chat>` or `id:<chat_id>`. One that is open already is the same. */
  async open(name: string, { create = false } = {}): Promise<Chat> {
    if (ownerNamed(name).chat === undefined) throw refused("name-illegal", `${name} is no chat.`, "/chat");
    return (await this.opened(name, create)) as Chat;
  }

  /** Open a character or preset, for its state. */
  owner(name: OwnerName): Promise<Handle> {
    return this.opened(textOf(name), false);
  }

  private async opened(name: string, create: boolean): Promise<Handle> {
    let held = this.link.subscribe(text(name, "/chat"), create);
    if (held.error) throw held.error;
    if (!held.replica) {
      try {
        await new Promise<void>((resolve, reject) => {
          held.onOpened.push((error) => (error ? reject(error) : resolve()));
          this.stepped();
        });
      } catch (error) {
        this.link.forget(held);
        // Somebody else here asked first, and did not want it made.
        if (create && !held.create && (error as TellbackError).code === "not-found") return this.opened(name, create);
        throw error;
      }
      held = this.link.subscribe(name);
    }
    const handle = this.handle(held);
    handle.holders++;
    this.tabs?.look();
    return handle;
  }

  /** @internal */
  async closeHandle(handle: Handle): Promise<void> {
    const { subscription } = handle;
    await new Promise<void>((resolve) => {
      this.link.unsubscribe(subscription, resolve);
      this.stepped();
    });
    subscription.fail(new TellbackError("client-closed", "the chat was closed"), false);
    handle.stepped();
  }

  /** @internal Ask the server what belongs to no open chat. */
  ask<Answer>(request: Write): Promise<Answer> {
    return new Promise((resolve, reject) => this.request(request, (answer, error) => (error ? reject(error) : resolve(answer))));
  }

  /** @internal The same; `waiter` is called in the step that receives the answer. */
  request(request: Write, waiter: Waiter): void {
    this.link.ask(request, waiter);
    this.stepped();
  }

  // -- inside

  /** @internal Whether an owner is open here. */
  holds(owner: string): boolean {
    return this.link.holds(owner);
  }

  /** @internal A client for what a tab that died left. */
  speakFor(session: string, outbox: Outbox, entries: readonly Entry[]): Client {
    return new Client(this.url, { ...this.options, session }, { outbox, entries, living: this });
  }

  /** @internal */
  stepped(): void {
    this.tell();
    this.wake();
  }

  /** @internal */
  wake(): void {
    if (this.status !== "closed") this.connection.wake();
  }

  /** @internal */
  tell(): void {
    for (const held of this.link.subscriptions) {
      this.handle(held).stepped();
      if (held.lost) this.untold.push(held.lost);
      held.lost = undefined;
    }
    const { status, error } = this;
    if (status !== this.told) {
      this.told = status;
      // Also when the server ended it: its tabs and locks end with it.
      if (status === "closed") this.end(error!);
      this.emitter.emit("connection", { status, ...(error && status === "closed" ? { error } : {}) });
    }
    const { conflicts, seen } = this;
    const now = [this.pending, ...conflicts, ...this.untold];
    if (!same(now, seen)) {
      this.seen = now;
      for (const conflict of conflicts) if (!seen.includes(conflict)) this.emitter.emit("conflicted", { conflict });
      this.emitter.emit("changed", {});
    }
    this.left?.living.tell();
    for (const resolve of this.waiters.splice(0)) resolve();
  }

  private changed(): Promise<void> {
    return new Promise((resolve) => this.waiters.push(resolve));
  }

  private handle(subscription: Subscription): Handle {
    return subscription.handle ?? new (subscription.isChat ? Chat : Handle)(this, subscription);
  }

  /** Wake with the page and the network; ask before something unsaved is left. */
  private listen(): void {
    const { document, window } = globalThis as { document?: Document; window?: Window };
    if (!window?.addEventListener || !document) return;
    const on = (target: EventTarget, name: string, act: (event: Event) => void) => {
      target.addEventListener(name, act);
      this.unlisten.push(() => target.removeEventListener(name, act));
    };
    const wake = () => {
      this.reconnect();
      this.tabs?.look();
    };
    on(window, "online", wake);
    on(window, "pageshow", wake);
    on(document, "visibilitychange", () => document.visibilityState === "visible" && wake());
    if (this.options.guard === false) return;
    on(window, "beforeunload", (event) => {
      if (this.pending || this.conflicts.length) event.preventDefault();
    });
  }
}
