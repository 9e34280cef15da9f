/** Luker's and SillyTavern's API for extensions, under its own names, on a client. docs/EXTENSION_API.md lists every name. */

import type { Chat } from "../chat.js";
import type { Client } from "../client.js";
import type { Handle } from "../handle.js";
import { difference, inner, TellbackError, type Operation } from "../index.js";
import type { Intent } from "../intents.js";
import type { Message } from "../replica.js";
import { EventSource, EventTypes, type Told } from "./emitter.js";
import { ensureMessageMediaIsArray, getMediaDisplay, getMediaIndex } from "./media.js";
import { assignMetadata, mergeMessage, reduceState } from "./merges.js";
import { nameAlone, Narrator } from "./narrator.js";

export { EventSource, EventTypes };

const { intents, refused } = inner;

export type Key = number | string;
export type Updater = (current: any, info?: { attempt: number; target: unknown; namespace: string }) => any;
export interface StateResult {
  ok: boolean;
  state: any;
  updated: boolean;
  error?: TellbackError;
}
interface Target {
  target?: unknown;
}

const SYSTEM = new Set(
  "HELP WELCOME EMPTY GENERIC NARRATOR COMMENT SLASH_COMMANDS FORMATTING HOTKEYS MACROS WELCOME_PROMPT ASSISTANT_NOTE ASSISTANT_MESSAGE".split(" "),
);
const isOver = (error: unknown) => !(error instanceof TellbackError) || /^(connection-lost|client-closed|session-taken-over|protocol-violation|outbox)$/.test(error.code);
const stripped = (name: string): string => name.replace(/\.jsonl$/, "");

/** A chat's address out of what extensions pass: an address, or Luker's `{is_group, id, avatar_url, file_name}`. */
function addressOf(target: any): string {
  if (typeof target === "string" && /^(character|group|id):/.test(target)) return target;
  if (target?.is_group && typeof target.id === "string") return `group:${stripped(target.id)}`;
  if (typeof target?.avatar_url === "string" && typeof target.file_name === "string") return `character:${target.avatar_url.replace(/\.png$/, "")}/${stripped(target.file_name)}`;
  throw new TypeError("a target is an address of a chat, or an object with is_group and id, or with avatar_url and file_name");
}

/** A chat that the context shows. */
class Held {
  readonly narrator: Narrator;
  readonly indexes = new WeakMap<Intent, Map<string, number>>();
  private readonly stops: (() => void)[];

  constructor(readonly chat: Chat, public address: string, tell: (held: Held, told: Told[], intent?: Intent, gone?: boolean) => void) {
    chat.stepped();
    const ids = () => [...chat.subscription.replica!.document.messages.keys()];
    this.narrator = new Narrator(ids(), nameAlone(address), address.startsWith("group:"));
    this.stops = [
      chat.on("committed", (event) => {
        const told = this.narrator.tell(event);
        if (event.intent) this.indexes.set(event.intent, new Map(told.filter(([, , info]) => (info as any)?.message_id).map(([, index, info]) => [(info as any).message_id, index as number])));
        tell(this, told, event.intent);
      }),
      chat.on("replaced", () => (this.narrator.replaced(ids()), tell(this, [[EventTypes.CHAT_CHANGED, this.narrator.name]]))),
      chat.on("conflicted", ({ conflict }) => tell(this, [[EventTypes.WRITE_CONFLICTED, conflict]], conflict.intent)),
      chat.on("renamed", ({ to }) => {
        this.address = to;
        tell(this, this.narrator.renamed(to));
      }),
      chat.on("gone", () => tell(this, [], undefined, true)),
      chat.on("deleted", () => tell(this, [], undefined, true)),
    ];
  }

  stop(): void {
    for (const stop of this.stops) stop();
  }
}

/** What an extension holds. Made by `createContext`. */
export class Context {
  readonly eventSource = new EventSource();
  readonly eventTypes = EventTypes;
  readonly ensureMessageMediaIsArray = ensureMessageMediaIsArray;
  readonly getMediaDisplay = getMediaDisplay;
  readonly getMediaIndex = getMediaIndex;
  /** The user's characters and groups, as they were read last. */
  characters: readonly any[] = [];
  groups: readonly any[] = [];
  extensionPrompts: Readonly<Record<string, object>> = Object.freeze({});
  readonly swipe: Swipes;
  private held: Held | undefined;
  private shown = true;
  private character: string | undefined;
  private group: string | undefined;
  private readonly opened = new Map<string, Handle>();
  private readonly silent = new WeakSet<Intent>();
  private switching: Promise<unknown> = Promise.resolve();
  private delivering: Promise<void> = Promise.resolve();
  private readonly unlisten: () => void;

  /** @internal Use `createContext`. */
  constructor(readonly client: Client, readonly name1: string) {
    this.swipe = new Swipes(this);
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
    const [characters, groups]: any[][] = [[], []];
    for await (const one of this.client.characters()) characters!.push(one);
    for await (const one of this.client.groups()) groups!.push(one);
    this.characters = Object.freeze(characters!);
    this.groups = Object.freeze(groups!);
  }

  /** Wait until no event waits for a listener. Never to be awaited inside a listener. */
  async eventsDelivered(): Promise<void> {
    for (let seen; seen !== this.delivering; ) await (seen = this.delivering);
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

  // -- messages

  getMessage(index: Key): Message | null {
    const id = this.idAt(index);
    return id === undefined ? null : this.held!.chat.message(id)!;
  }

  getMessageCount(): number {
    return this.chat.length;
  }

  /** Put one message or several at the end, as one commit. The index, or the indexes of an array. */
  async addMessages(messages: object | readonly object[], { silent = false }: { scroll?: boolean; silent?: boolean } = {}): Promise<any> {
    const held = this.current();
    const isMany = Array.isArray(messages);
    const many: readonly object[] = isMany ? messages : [messages];
    if (!many.length) return [];
    const intent = intents.append(many);
    const { messageIds } = await this.write(held.chat, intent, silent);
    const positions = held.indexes.get(intent);
    const indexes = messageIds.map((id) => positions?.get(id) ?? held.chat.messages.findLastIndex((message) => message.id === id));
    return isMany ? indexes : indexes[0];
  }

  /** Merge `patch` into messages, `{index or id, patch}` each, all of them as one commit. */
  async updateMessages(updates: any, { silent = false, deep = true }: { rerender?: boolean; silent?: boolean; deep?: boolean } = {}): Promise<void> {
    const held = this.current();
    const many: Intent[] = (Array.isArray(updates) ? updates : [updates]).map(({ id, index, patch }: any) => {
      if (typeof patch !== "object" || patch === null) throw new TypeError("an update has `patch`, an object, and `index` or `id`");
      return mergeMessage(this.known(id ?? index), patch, deep);
    });
    if (many.length) await this.write(held.chat, many.length === 1 ? many[0]! : intents.batch(many), silent);
  }

  /** Take messages out, by index or id, as one commit; they are given back. With `swipe` only that swipe of one message. */
  async deleteMessages(index: Key | readonly Key[], { swipe, silent = false }: { swipe?: number; silent?: boolean } = {}): Promise<any> {
    const { chat } = this.current();
    const isMany = Array.isArray(index);
    const ids = new Set((isMany ? index : [index as Key]).map((key) => this.known(key)));
    const found = chat.messages.filter((message) => ids.has(message.id));
    if (swipe !== undefined) {
      if (ids.size !== 1) throw new TypeError("`swipe` goes with one message");
      await this.write(chat, intents.swipe(found[0]!.id, { action: "delete", swipe }), silent);
      const now = chat.message(found[0]!.id) ?? found[0];
      return isMany ? [now] : now;
    }
    if (ids.size) await this.write(chat, intents.remove([...ids]), silent);
    return isMany ? found : found[0];
  }

  /** Deprecated: addMessages. */
  addOneMessage = (message: object): Promise<number> => this.addMessages(message);
  /** Deprecated: addMessages. */
  appendChatMessages = (messages: readonly object[]): Promise<number[]> => this.addMessages(messages);
  /** Deprecated: deleteMessages. */
  deleteLastMessage = (): Promise<Message> => this.deleteMessages(this.chat.length - 1);
  /** Deprecated: deleteMessages. */
  deleteMessage = (index: Key, swipe?: number): Promise<Message> => this.deleteMessages(index, swipe === undefined ? {} : { swipe });
  /** Deprecated: updateMessages. */
  updateMessageBlock = (index: number, message: object): Promise<void> => this.updateMessages({ index, patch: message });
  /** Deprecated: updateMessages, deleteMessages. RFC 6902 on the array of messages. */
  patchChatMessages = (operations: readonly Operation[]) =>
    this.current().chat.patch(null, operations.map((one) => ({ ...one, path: `/messages${one.path}`, ...(one.from === undefined ? {} : { from: `/messages${one.from}` }) })));

  // -- metadata and states

  /** Put members into the metadata, each in place of the whole old one. False when it was refused or somebody was faster. */
  async saveChatMetadata(withMetadata?: object): Promise<boolean> {
    const { chat } = this.current();
    try {
      if (withMetadata) await chat.write(assignMetadata(withMetadata));
      else await chat.saved();
      return true;
    } catch (error) {
      if (isOver(error)) throw error;
      // False is all that the caller is told; nobody would ever take an exit.
      (error as TellbackError).conflict?.takeTheirs();
      return false;
    }
  }

  /** The state of a chat, a copy; null when there is none. */
  async getChatState(namespace: string, { target }: Target = {}): Promise<any> {
    return (await (await this.target(target)).state(namespace).get()) ?? null;
  }

  async getChatStateBatch(namespaces: readonly string[], { target }: Target = {}): Promise<Record<string, any>> {
    const states = await (await this.target(target)).states(namespaces);
    return Object.fromEntries(Object.entries(states).map(([namespace, data]) => [namespace, data ?? null]));
  }

  /** Change the state of a chat by a function of it; it runs again until it fits, or `maxRetries` times. */
  async updateChatState(namespace: string, updater: Updater, { target, maxRetries = Infinity }: Target & { maxRetries?: number } = {}): Promise<StateResult> {
    return this.reduce(await this.target(target), namespace, updater, target, maxRetries);
  }

  /** RFC 6902 on the state of a chat as it is now; prefer updateChatState. */
  async patchChatState(namespace: string, operations: readonly Operation[], { target }: Target = {}): Promise<StateResult> {
    const state = (await this.target(target)).state(namespace);
    return this.result(async () => {
      const { changed } = await state.patch(operations);
      return { updated: changed, state: (await state.get()) ?? null };
    });
  }

  async deleteChatState(namespace: string, { target }: Target = {}): Promise<StateResult> {
    const chat = await this.target(target);
    return this.result(async () => ({ updated: (await chat.write(takenAway(namespace))).changed, state: null }));
  }

  async getCharacterState(avatar: string, namespace: string): Promise<any> {
    return (await (await this.characterOwner(avatar)).state(namespace).get()) ?? null;
  }

  /** Replace the state of a character; null takes it away. */
  async setCharacterState(avatar: string, namespace: string, data: any): Promise<void> {
    const state = (await this.characterOwner(avatar)).state(namespace);
    await (data === null ? state.delete() : state.set(data));
  }

  /** A floor state of a namespace, for whichever chat is shown. */
  async createFloorState(options: string | { namespace: string }): Promise<Readonly<Pick<FloorState, keyof FloorState>>> {
    const namespace = typeof options === "string" ? options : options?.namespace;
    if (typeof namespace !== "string") throw new TypeError("a floor state is named by its namespace");
    return Object.freeze(new FloorState(() => this.held?.chat, namespace.trim().toLowerCase()));
  }

  /** RFC 6902 operations from one value to another; none when they are equal. */
  async buildObjectPatchOperationsAsync(before: any, after: any): Promise<Operation[]> {
    return difference(before, after);
  }

  // -- the life of chats

  /** Show a chat of any character or group, by its address. tellback's own. */
  openChat(target: unknown, { create = false } = {}): Promise<void> {
    return this.exclusively(() => this.showOf(addressOf(target), create));
  }

  openCharacterChat(fileName: string): Promise<void> {
    const character = this.chosen();
    return this.exclusively(() => this.showOf(`character:${character}/${stripped(fileName)}`));
  }

  async openGroupChat(groupId: string, chatId: string): Promise<void> {
    const name = stripped(chatId);
    const inGroup = () => this.groups.find(({ id, chats }) => id === groupId && chats?.includes(name));
    if (!inGroup()) await this.refresh();
    if (!inGroup()) throw refused("not-found", `The group ${groupId} has no chat ${name}.`);
    await this.exclusively(() => this.showOf(`group:${name}`, false, groupId));
  }

  /** Show the active chat of a character, a new one when it has none. tellback's own. */
  async selectCharacter(key: Key): Promise<void> {
    const character = this.characterNamed(key);
    const active = await this.client.activeChat({ character });
    if (active) await this.exclusively(() => this.showOf(active));
    else await this.newChat(`character:${character}/`, `${character} - `);
  }

  /** Show the active chat of a group, a new one when it has none. tellback's own. */
  async selectGroup(group: string): Promise<void> {
    if (!this.groups.some(({ id }) => id === group)) throw refused("not-found", `There is no group ${group}.`);
    const active = await this.client.activeChat({ group });
    if (active) await this.exclusively(() => this.showOf(active, false, group));
    else await this.newChat("group:", "", group);
  }

  /** Show nothing and choose nobody. True: nothing here can decline. */
  async closeCurrentChat(): Promise<boolean> {
    await this.exclusively(() => this.show(undefined));
    this.character = this.group = undefined;
    return true;
  }

  /** Read the shown chat again: all that is stored now is in it when CHAT_CHANGED is told. One at a time. */
  reloadCurrentChat(): Promise<void> {
    return this.exclusively(async () => {
      const { chat } = this.current();
      const commits = (await chat.history(chat.head.seq, 1000)).commits ?? [];
      const last = commits.at(-1)?.version.seq ?? 0;
      while (chat.head.seq < last && chat.status !== "offline") await new Promise<void>((resolve) => this.once(chat, resolve));
      this.shown = true;
      this.tell([[EventTypes.CHAT_CHANGED, this.getCurrentChatId()]]);
    });
  }

  /** Make a chat for the chosen character or group and show it. It has no messages: a greeting comes from whoever reads the card. */
  async doNewChat({ deleteCurrentChat = false } = {}): Promise<void> {
    const before = this.held?.address;
    if (this.group !== undefined) await this.newChat("group:", "", this.group);
    else await this.newChat(`character:${this.chosen()}/`, `${this.chosen()} - `);
    if (deleteCurrentChat && before) await this.delete(before);
  }

  async renameChat(oldFileName: string, newName: string): Promise<void> {
    const [old, to] = [stripped(oldFileName), stripped(newName)];
    const address = this.group === undefined ? `character:${this.chosen()}/${old}` : `group:${old}`;
    const chat = await this.target(address);
    await chat.rename(to);
    if (this.held?.chat !== chat) {
      this.opened.delete(address);
      this.tell([[EventTypes.CHAT_RENAMED, old, to]]);
    }
    await this.refresh();
  }

  /** Put a chat of a character into the trash. */
  deleteCharacterChat(characterId: Key, fileName: string): Promise<void> {
    return this.delete(`character:${this.characterNamed(characterId)}/${stripped(fileName)}`);
  }

  /** All chats of a character, the one changed last first. */
  async getPastCharacterChats(characterId?: Key): Promise<{ file_name: string; file_id: string; file_size: string; mes: string; last_mes: number }[]> {
    const past = [];
    for await (const one of this.client.listChats({ character: characterId === undefined ? this.chosen() : this.characterNamed(characterId) })) {
      const file_id = nameAlone(one.chat);
      past.push({ file_name: `${file_id}.jsonl`, file_id, file_size: size(one.size_bytes), mes: one.preview, last_mes: one.changed_ms });
    }
    return past;
  }

  /** Wait until all own writes to the shown chat are durable; nothing else is ever needed. */
  saveChat(): Promise<void> {
    return this.current().chat.saved();
  }

  /** Put a system message at the end of the shown chat; it is stored like any other. Its index. */
  async sendSystemMessage(type: string, text = "", extra: object = {}): Promise<number> {
    if (!SYSTEM.has(String(type).toUpperCase())) throw new TypeError(`a system message is one of ${[...SYSTEM].join(", ")}`);
    return this.addMessages({ name: "System", is_user: false, is_system: true, send_date: new Date().toISOString(), mes: text, extra: { ...extra, type: type.toLowerCase() } });
  }

  // -- extension prompts

  /** Put a text into the prompt, in this context's memory; an empty one takes it away. */
  setExtensionPrompt(key: string, value: string, position = 0, depth = 0, scan = false, role = 0, filter: (() => unknown) | null = null): void {
    const { [key]: _, ...others } = this.extensionPrompts;
    this.extensionPrompts = Object.freeze(value ? { ...others, [key]: Object.freeze({ value, position, depth, scan, role, filter }) } : others);
  }

  /** Forget the extension prompts; with `clearData` also show no message until a chat is read again. Deletes nothing. */
  async clearChat({ clearData = false } = {}): Promise<void> {
    this.extensionPrompts = Object.freeze({});
    if (clearData) this.shown = false;
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

  private idAt(key: Key): string | undefined {
    if (typeof key === "string") return this.held?.chat.message(key)?.id;
    if (!Number.isInteger(key)) throw new TypeError("a message is named by its index, an integer, or by its id, a string");
    return this.chat[key]?.id;
  }

  private write(chat: Chat, intent: Intent, silent: boolean) {
    if (silent) this.silent.add(intent);
    return chat.write(intent);
  }

  private async reduce(owner: Handle, namespace: string, updater: Updater, target: unknown, maxRetries: number): Promise<StateResult> {
    const told: { state?: any } = {};
    return this.result(async () => {
      const { changed } = await owner.write(reduceState(namespace, (current, attempt) => updater(current, { attempt, target, namespace }), maxRetries, told));
      return { updated: changed, state: told.state };
    });
  }

  private async result(act: () => Promise<{ updated: boolean; state: any }>): Promise<StateResult> {
    try {
      return { ok: true, ...(await act()) };
    } catch (error) {
      if (isOver(error)) throw error;
      (error as TellbackError).conflict?.takeTheirs();
      return { ok: false, state: null, updated: false, error: error as TellbackError };
    }
  }

  private async target(target: unknown): Promise<Chat> {
    if (target === undefined || target === null) return this.current().chat;
    const address = addressOf(target);
    if (this.held && [this.held.address, `id:${this.held.chat.chatId}`].includes(address)) return this.held.chat;
    return (await this.keep(address, () => this.client.open(address))) as Chat;
  }

  private characterOwner(avatar: string): Promise<Handle> {
    const character = avatar.replace(/\.png$/, "");
    return this.keep(`character:${character}`, () => this.client.owner({ character }));
  }

  /** Open, and kept open with the few used last. */
  private async keep(name: string, open: () => Promise<Handle>): Promise<Handle> {
    let owner = this.opened.get(name);
    if (!owner || owner.subscription.error) owner = await open();
    this.opened.delete(name);
    this.opened.set(name, owner);
    for (const [oldest, one] of this.opened) {
      if (this.opened.size <= 8) break;
      this.opened.delete(oldest);
      void this.giveBack(one);
    }
    return owner;
  }

  private exclusively<Result>(act: () => Promise<Result>): Promise<Result> {
    const done = this.switching.then(act);
    this.switching = done.catch(() => {});
    return done;
  }

  private async showOf(address: string, create = false, group?: string): Promise<void> {
    await this.show(address, create);
    const now = this.current().address;
    this.character = now.startsWith("character:") ? now.slice(10, now.indexOf("/")) : undefined;
    this.group = now.startsWith("group:") ? (group ?? this.groups.find(({ chats }) => chats?.includes(nameAlone(now)))?.id) : undefined;
    if (this.character !== undefined) await this.client.setActiveChat(now, { character: this.character });
    else if (this.group !== undefined) await this.client.setActiveChat(now, { group: this.group });
  }

  /** Show a chat, or none; when it cannot be opened, what was shown stays. */
  private async show(address: string | undefined, create = false): Promise<void> {
    const chat = address === undefined ? undefined : await this.client.open(address, { create });
    const old = this.held;
    this.held = chat && new Held(chat, chat.name.startsWith("id:") ? address! : chat.name, this.happened);
    this.shown = true;
    this.extensionPrompts = Object.freeze({});
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

  private tell(told: Told[]): void {
    for (const [name, ...given] of told) this.delivering = this.delivering.then(() => this.eventSource.emit(name, ...given));
  }

  private leave(held: Held): Promise<void> {
    held.stop();
    return this.giveBack(held.chat);
  }

  /** Let go of an owner when its writes have their answers. */
  private async giveBack(owner: Handle): Promise<void> {
    await owner.saved().catch(() => {});
    if (--owner.holders === 0 && !owner.conflicts.length && !owner.subscription.error) await owner.close().catch(() => {});
  }

  private once(chat: Chat, act: () => void): void {
    const stop = chat.on("changed", () => (stop(), act()));
  }

  private async newChat(folder: string, prefix: string, group?: string): Promise<void> {
    await this.exclusively(async () => {
      const now = new Date();
      const two = (value: number) => String(value).padStart(2, "0");
      const stamp = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}@${two(now.getHours())}h${two(now.getMinutes())}m${two(now.getSeconds())}s`;
      for (const tail of ["", `${now.getMilliseconds()}ms`, `${Math.trunc(Math.random() * 1e6)}`]) {
        const name = prefix + stamp + tail;
        try {
          const made = await this.client.createChat(folder + name, group === undefined ? {} : { group });
          await this.showOf(folder + name, false, group);
          made.holders--;
          return this.tell([[group === undefined ? EventTypes.CHAT_CREATED : EventTypes.GROUP_CHAT_CREATED, name]]);
        } catch (error) {
          if (!/^(exists|deleted)$/.test((error as TellbackError).code)) throw error;
        }
      }
      throw refused("exists", "Every name for a new chat is taken.");
    });
    await this.refresh();
  }

  private async delete(address: string): Promise<void> {
    const chat = await this.target(address);
    const isShown = this.held?.chat === chat;
    await chat.remove();
    // Of the shown chat the commit itself tells.
    if (!isShown) {
      this.opened.delete(address);
      this.tell([[address.startsWith("group:") ? EventTypes.GROUP_CHAT_DELETED : EventTypes.CHAT_DELETED, nameAlone(address)]]);
    }
    await this.refresh();
  }

  private chosen(): string {
    if (this.character === undefined) throw refused("not-open", "No character is chosen; open one of its chats first.");
    return this.character;
  }

  private characterNamed(key: Key): string {
    const found = this.characters.find(({ avatar, character }, index) => [avatar, character, index].includes(key)) ?? (/^\d+$/.test(String(key)) ? this.characters[+key] : undefined);
    if (!found && typeof key === "string" && !/^\d+$/.test(key)) return key.replace(/\.png$/, "");
    if (!found) throw refused("not-found", `There is no character ${key}; there are ${this.characters.length}.`);
    return found.character;
  }
}

/** One namespace of floor state, for whichever chat is shown. */
export class FloorState {
  private readonly life = { destroyed: false };

  constructor(private readonly chat: () => Chat | undefined, readonly namespace: string) {}

  /** Change the state by a function of it; anything but an object is no change. False for a wrong floor, and once destroyed. */
  update(reducer: (current: any) => any, { floor, swipeId }: { floor?: number; swipeId?: number } = {}): Promise<boolean> {
    return this.write({ update: reducer }, floor, swipeId);
  }

  /** Operations that lead on from what `get` gives. */
  patch(operations: readonly Operation[], { floor, swipeId }: { floor?: number; swipeId?: number } = {}): Promise<boolean> {
    return this.write({ patch: operations }, floor, swipeId);
  }

  async get(): Promise<any> {
    return (await this.chat()?.state(this.namespace).get()) ?? null;
  }

  /** Wait for own writes; there is never a rebuild to wait for. */
  async ready(): Promise<void> {
    await this.chat()?.saved();
  }

  destroy(): void {
    this.life.destroyed = true;
  }

  private async write(change: Parameters<typeof inner.intents.floor>[1], floor?: number, swipe?: number): Promise<boolean> {
    const chat = this.chat();
    if (this.life.destroyed || !chat) return false;
    try {
      await chat.write(intents.floor(this.namespace, change, { ...(floor === undefined ? {} : { floor }), ...(swipe === undefined ? {} : { swipe }) }));
      return true;
    } catch (error) {
      if (/^(message-unknown|swipe-unknown|bad-frame)$/.test((error as TellbackError).code)) return false;
      throw error;
    }
  }
}

/** The seed's `context.swipe`. */
class Swipes {
  /** Whether a front end shows the buttons. */
  visible = true;
  countersVisible = true;
  private moving = 0;

  constructor(private readonly context: Context) {}

  left(event?: unknown, options: object = {}): Promise<boolean> {
    return this.to(event, "left", options);
  }

  right(event?: unknown, options: object = {}): Promise<boolean> {
    return this.to(event, "right", options);
  }

  /** Show another swipe of the last message, or of `forceMesId`. False when there is none: a front end would generate there. */
  async to(_event: unknown, direction = "right", { forceMesId, forceSwipeId }: { forceMesId?: Key; forceSwipeId?: number } = {}): Promise<boolean> {
    const { chat } = this.context.current();
    const { length } = chat.messages;
    const message = chat.message(this.context.known(forceMesId ?? length - 1))!;
    const shown = message.swipe_id ?? 0;
    const total = message.swipes?.length ?? 1;
    const isGreeting = length === 1 && message.is_user !== true;
    const wanted = forceSwipeId ?? (direction === "left" ? (shown + total - 1) % total : shown + 1 < total ? shown + 1 : isGreeting ? 0 : shown);
    if (!Number.isInteger(wanted) || wanted < 0 || wanted >= total) throw refused("swipe-unknown", `There is no swipe ${wanted}.`, "/swipe");
    if (wanted === shown) return false;
    this.moving++;
    try {
      await chat.swipeSelect(message.id, wanted);
      return true;
    } finally {
      this.moving--;
    }
  }

  isAllowed(): boolean {
    const { chat } = this.context;
    if (!chat.length || this.moving) return false;
    const held = this.context.current().chat;
    return held.status !== "read-only" && !held.subscription.generations.running.length;
  }

  state(): "none" | "swiping" {
    return this.moving ? "swiping" : "none";
  }

  show(): void {
    this.visible = true;
  }

  hide({ hideCounters = false } = {}): void {
    this.visible = false;
    this.countersVisible = !hideCounters;
  }

  /** Nothing here: whoever draws reads `chat`. */
  refresh(): void {}
}

/** A state is taken away whatever it holds by then. */
function takenAway(namespace: string): Intent {
  const intent = intents.state(namespace, { delete: true });
  return { isFunction: true, parts: intent.parts, repeatable: () => true };
}

function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(3, Math.floor(Math.log(bytes) / Math.log(1024)));
  return `${(bytes / 1024 ** power).toFixed(1)} ${["", "KB", "MB", "GB"][power]}`;
}

export interface ContextOptions {
  /** A chat by its address; or the active one of a character or of a group (by id). */
  chat?: string;
  character?: Key;
  group?: string;
  name1?: string;
}

/** A context that shows a chat; without one it shows none. */
export async function createContext(client: Client, { chat, character, group, name1 = "User" }: ContextOptions = {}): Promise<Context> {
  const context = new Context(client, name1);
  await context.refresh();
  if (chat !== undefined) await context.openChat(chat);
  else if (character !== undefined) await context.selectCharacter(character);
  else if (group !== undefined) await context.selectGroup(group);
  return context;
}
