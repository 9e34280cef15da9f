/* The ground of a context: which chat it shows, the owners it keeps open, and the events on their way to the listeners.

   - A verb takes the chat that is shown when it is called; switching afterwards does not move its write.
   - An owner that is no longer needed is closed when its writes have their answers, unless somebody else holds it or a
     conflict waits in it. */

import type { Chat } from "../chat.js";
import type { Client } from "../client.js";
import type { Handle } from "../handle.js";
import { inner, TellbackError } from "../index.js";
import type { Intent } from "../intents.js";
import type { WriteResult } from "../outbox.js";
import type { Message } from "../replica.js";
import { Delivery } from "./delivery.js";
import { EventSource, EventTypes, type Told } from "./emitter.js";
import { Held } from "./held.js";

const { refused } = inner;

const KEPT_OPEN_MAX = 8;

/** A message by its index or id; a character by its index, avatar or name. */
export type Key = number | string;

/** Whether an error means more than that one write failed. */
export const isOver = (error: unknown): boolean =>
  !(error instanceof TellbackError) || /^(connection-lost|client-closed|session-taken-over|protocol-violation|outbox)$/.test(error.code);

export const stripped = (name: string): string => name.replace(/\.jsonl$/, "");

/** A chat's address out of what extensions pass: an address, or Luker's `{is_group, id, avatar_url, file_name}`. */
export function addressOf(target: any): string {
  if (typeof target === "string" && /^(character|group|id):/.test(target)) return target;
  if (target?.is_group && typeof target.id === "string") return `group:${stripped(target.id)}`;
  if (typeof target?.avatar_url === "string" && typeof target.file_name === "string") return `character:${target.avatar_url.replace(/\.png$/, "")}/${stripped(target.file_name)}`;
  throw new TypeError("a target is an address of a chat, or an object with is_group and id, or with avatar_url and file_name");
}

export class Base {
  readonly eventSource = new EventSource();
  readonly eventTypes = EventTypes;
  /** The user's characters and groups, as they were read last. */
  characters: readonly any[] = [];
  groups: readonly any[] = [];
  extensionPrompts: Readonly<Record<string, object>> = Object.freeze({});
  protected held: Held | undefined;
  protected shown = true;
  protected character: string | undefined;
  protected group: string | undefined;
  protected readonly opened = new Map<string, Handle>();
  protected switching: Promise<unknown> = Promise.resolve();
  private readonly silent = new WeakSet<Intent>();
  private readonly delivery = new Delivery(this.eventSource, () => this.getCurrentChatId());
  private readonly unlisten: () => void;

  /** @internal Use `createContext`. */
  constructor(readonly client: Client, readonly name1: string) {
    this.unlisten = client.on("connection", ({ status }) => this.tell([[EventTypes.ONLINE_STATUS_CHANGED, status]]));
  }

  // -- what is there

  /** The messages of the shown chat, frozen; empty when none is shown. Own writes show at once. */
  get chat(): readonly Message[] {
    return this.held && this.shown ? this.held.chat.messages : [];
  }

  get chat_metadata(): any {
    return this.held?.chat.metadata ?? Object.freeze({});
  }

  get online_status(): string {
    return this.client.status;
  }

  /** The index in `characters` of the one whose chat is shown. */
  get characterId(): number | undefined {
    const at = this.characters.findIndex(({ character }) => character === this.character);
    return at < 0 ? undefined : at;
  }

  get groupId(): string | null {
    return this.group ?? null;
  }

  /** The character's name as its card says; empty in a group. */
  get name2(): string {
    return this.characters[this.characterId ?? -1]?.name ?? this.character ?? "";
  }

  /** The name of the shown chat. */
  getCurrentChatId(): string | undefined {
    return this.held?.narrator.name;
  }

  /** Read the lists of characters and groups again. */
  async refresh(): Promise<void> {
    const characters = [];
    const groups = [];
    for await (const one of this.client.characters()) characters.push(one);
    for await (const one of this.client.groups()) groups.push(one);
    this.characters = Object.freeze(characters);
    this.groups = Object.freeze(groups);
  }

  /** Wait until no event waits for a listener. Never to be awaited inside a listener. */
  eventsDelivered(): Promise<void> {
    return this.delivery.delivered();
  }

  /** Stop delivering events and let go of the chats; the client stays. */
  async close(): Promise<void> {
    this.unlisten();
    const { held } = this;
    this.held = undefined;
    if (held) await this.leave(held);
    for (const owner of this.opened.values()) await this.giveBack(owner);
    this.opened.clear();
  }

  // -- inside

  /** @internal */
  current(): Held {
    if (!this.held) throw refused("not-open", "The context shows no chat; open one first.");
    return this.held;
  }

  /** @internal The id of a message that is there. */
  known(key: unknown): string {
    const id = this.idAt(key as Key);
    if (id === undefined) throw refused("message-unknown", `There is no message ${key}; the chat has ${this.chat.length}.`, "/index");
    return id;
  }

  protected idAt(key: Key): string | undefined {
    if (typeof key === "string") return this.held?.chat.message(key)?.id;
    if (!Number.isInteger(key)) throw new TypeError("a message is named by its index, an integer, or by its id, a string");
    return this.chat[key]?.id;
  }

  protected write(chat: Chat, intent: Intent, silent: boolean): Promise<WriteResult> {
    if (silent) this.silent.add(intent);
    return chat.write(intent);
  }

  protected async target(target: unknown): Promise<Chat> {
    if (target === undefined || target === null) return this.current().chat;
    const address = addressOf(target);
    if (this.held && [this.held.address, `id:${this.held.chat.chatId}`].includes(address)) return this.held.chat;
    return (await this.keep(address, () => this.client.open(address))) as Chat;
  }

  /** Open, and kept open with the few used last. */
  protected async keep(name: string, open: () => Promise<Handle>): Promise<Handle> {
    let owner = this.opened.get(name);
    if (!owner || owner.subscription.error) owner = await open();
    this.opened.delete(name);
    this.opened.set(name, owner);
    for (const [oldest, one] of this.opened) {
      if (this.opened.size <= KEPT_OPEN_MAX) break;
      this.opened.delete(oldest);
      void this.giveBack(one);
    }
    return owner;
  }

  /** Show a chat, or none; when it cannot be opened, what was shown stays. */
  protected async show(address: string | undefined, create = false): Promise<void> {
    const chat = address === undefined ? undefined : await this.client.open(address, { create });
    const old = this.held;
    this.held = chat && new Held(chat, chat.name.startsWith("id:") ? address! : chat.name, this.happened);
    this.shown = true;
    this.extensionPrompts = Object.freeze({});
    this.delivery.dropContents();
    if (old) void this.leave(old);
    this.tell([[EventTypes.CHAT_CHANGED, this.getCurrentChatId()]]);
  }

  private readonly happened = (held: Held, told: Told[], intent?: Intent, gone = false): void => {
    if (held !== this.held) return;
    if (!intent || !this.silent.has(intent)) this.tell(told);
    if (!gone) return;
    this.held = undefined;
    void this.leave(held);
    this.tell([[EventTypes.CHAT_CHANGED, undefined]]);
  };

  protected tell(told: readonly Told[]): void {
    this.delivery.tell(told);
  }

  protected leave(held: Held): Promise<void> {
    held.stop();
    return this.giveBack(held.chat);
  }

  /** Let go of an owner when its writes have their answers. */
  protected async giveBack(owner: Handle): Promise<void> {
    await owner.saved().catch(() => {});
    if (--owner.holders === 0 && !owner.conflicts.length) await owner.close().catch(() => {});
  }
}
