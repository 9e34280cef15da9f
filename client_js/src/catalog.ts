/* Lists, search, active chats, the trash, and the life of owners that are not open: what is asked of no single chat.

   - Questions are asked again on the next connection when one ends first.

   Loading it gives clients the verbs of `Catalog`; it is `tellback/catalog`. */

import type {
  ActiveChatFrame, Character, CharacterListFrame, ChatListFrame, ChatSearchFrame, FoundMessage, GroupListFrame, ListedChat, TrashListFrame,
} from "./frames.js";
import type { Handle } from "./handle.js";
import type { OwnerName } from "./ids.js";
import { Client, inner, TellbackError, type Chat } from "./index.js";
import type { Write } from "./replica.js";

const { live, mixin, payload, refused } = inner;

export interface ChatFilter {
  character?: string;
  /** A group's id; `*`: all group chats. */
  group?: string;
  /** What is in the trash instead. */
  deleted?: boolean;
}

const RESTORES_MAX = 8;

/** What a client can ask of all chats and owners. */
export abstract class Catalog {
  /** @internal */
  abstract ask<Answer>(request: Write): Promise<Answer>;
  abstract open(name: string, options?: { create?: boolean }): Promise<Chat>;
  abstract owner(name: OwnerName): Promise<Handle>;

  /** Chats, the one changed last first. */
  listChats(filter: ChatFilter = {}): AsyncGenerator<ListedChat> {
    return this.pages<ChatListFrame, ListedChat>({ type: "chat-list", limit: 200, ...filter }, (frame) => frame.chats, (one) => `${one.chat}\n${one.deleted_ms}`);
  }

  /** Messages that hold every word of `query`, and chats whose name does. */
  searchChats(query: string, filter: Omit<ChatFilter, "deleted"> = {}): AsyncGenerator<FoundMessage> {
    return this.pages<ChatSearchFrame, FoundMessage>({ type: "chat-search", query, limit: 50, ...filter }, (frame) => frame.found, (one) => `${one.chat}\n${one.message}`);
  }

  characters(): AsyncGenerator<Character> {
    return this.pages<CharacterListFrame, Character>({ type: "character-list", limit: 1000 }, (frame) => frame.characters, (one) => one.character);
  }

  /** The groups as their files hold them. */
  groups(): AsyncGenerator<Record<string, any>> {
    return this.pages<GroupListFrame, any>({ type: "group-list", limit: 1000 }, (frame) => frame.groups, (one) => one.id);
  }

  /** Address of the chat last worked on with a character, or in a group by its id. */
  async activeChat(of: { character: string } | { group: string }): Promise<string | null> {
    return (await this.ask<ActiveChatFrame>({ type: "active-chat", ...of })).chat;
  }

  /** Remember which chat is worked on; durable when it resolves. */
  async setActiveChat(chat: string | null, of: { character: string } | { group: string }): Promise<void> {
    await this.ask({ type: "active-chat", ...of, chat });
  }

  trash(): Promise<TrashListFrame> {
    return this.ask({ type: "trash-list" });
  }

  /** Entries go for good: those named, or those deleted before a time. */
  emptyTrash(which: { entries: string[] } | { before_ms: number }): Promise<unknown> {
    return this.ask({ type: "trash-empty", ...which });
  }

  /** Make a chat that is not there, and open it. `group` is the id of the group that a group chat belongs to. */
  async createChat(name: string, { metadata, messages = [], group }: { metadata?: object; messages?: readonly object[]; group?: string } = {}): Promise<Chat> {
    const ack = await this.ask<{ duplicate?: boolean }>({
      type: "chat-create", chat: name, op: 1, messages: payload(messages, "/messages"),
      ...(metadata ? { metadata: payload(metadata, "/metadata") } : {}), ...(group === undefined ? {} : { group }),
    });
    if (ack.duplicate) throw refused("exists", `${name} exists: this session made it before.`, "/chat");
    return this.open(name);
  }

  /** Bring a chat back from the trash, under `to` when its old name is taken, and open it. */
  async restoreChat(chatId: string, to?: string): Promise<Chat> {
    const chat = `id:${chatId}`;
    await this.numbered(async () => {
      try {
        await this.ask({ type: "history", chat, limit: 1 });
      } catch (error) {
        if (error instanceof TellbackError && error.code === "deleted" && error.nextOp !== undefined) return error.nextOp;
        throw error;
      }
      throw refused("exists", "The chat is not in the trash.", "/chat");
    }, (op) => ({ type: "chat-restore", chat, op, ...(to === undefined ? {} : { to }) }));
    return this.open(chat);
  }

  /** Give a character or preset another name (the name alone). */
  async renameOwner(owner: OwnerName, to: string): Promise<void> {
    await (await this.owner(owner)).write(live({ type: "owner-rename", to }));
  }

  /** Put a character or preset into the trash, and with `chats` a character's chats. */
  async deleteOwner(owner: OwnerName, chats = false): Promise<void> {
    await (await this.owner(owner)).write(live({ type: "owner-delete", ...(chats ? { chats } : {}) }));
  }

  /** Bring back what was deleted last under this name. */
  async restoreOwner(owner: OwnerName): Promise<void> {
    // Which number comes next is known to the server alone.
    let next = Number.MAX_SAFE_INTEGER;
    await this.numbered(async () => next, (op) => ({ type: "owner-restore", owner, op }), (expected) => (next = expected));
  }

  private async numbered(number: () => Promise<number>, request: (op: number) => Write, learn: (expected: number) => void = () => {}): Promise<void> {
    for (let tries = 0; tries < RESTORES_MAX; tries++) {
      try {
        await this.ask(request(await number()));
        return;
      } catch (error) {
        if (!(error instanceof TellbackError) || !/^op-(gap|mismatch)$/.test(error.code)) throw error;
        if (error.expected !== undefined) learn(error.expected);
      }
    }
    throw refused("overloaded", "This session writes to it at the same time.");
  }

  /** Page by page, as far as one reads; what changed meanwhile is told once. */
  private async *pages<Frame extends { cursor: string | null }, Item>(request: Write, items: (frame: Frame) => readonly Item[], key: (item: Item) => string): AsyncGenerator<Item> {
    const told = new Set<string>();
    for (let cursor: string | null = null; ; ) {
      const frame: Frame = await this.ask<Frame>(cursor === null ? request : { ...request, cursor });
      for (const item of items(frame)) {
        if (told.has(key(item))) continue;
        told.add(key(item));
        yield item;
      }
      cursor = frame.cursor;
      if (cursor === null) return;
    }
  }
}

declare module "./client.js" {
  interface Client extends Omit<Catalog, "ask" | "open" | "owner"> {}
}
mixin(Client, Catalog);
