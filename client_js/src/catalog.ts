/* Lists, search, active chats, the trash and how everything stands: what is asked of no single chat.

   - Questions are asked again on the next connection when one ends first.

   Loading it gives clients the verbs of `Catalog`; it is `tellback/catalog`. */

import type {
  ActiveChatFrame, Character, CharacterListFrame, ChatListFrame, ChatSearchFrame, FoundMessage, GroupListFrame, ListedChat, StatusFrame, TrashListFrame,
} from "./frames.js";
import { Client, inner } from "./index.js";
import type { Write } from "./replica.js";

export interface ChatFilter {
  character?: string;
  /** A group's id; `*`: all group chats. */
  group?: string;
  /** What is in the trash instead. */
  deleted?: boolean;
}

/** What a client can ask of all chats and owners. */
export abstract class Catalog {
  /** @internal */
  abstract ask<Answer>(request: Write): Promise<Answer>;

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

  /** How the user's connections and live owners stand, at most `limit` of each, and the log below them. */
  serverStatus(limit = 200): Promise<StatusFrame> {
    return this.ask({ type: "status", limit });
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
  interface Client extends Omit<Catalog, "ask"> {}
}
inner.mixin(Client, Catalog);
