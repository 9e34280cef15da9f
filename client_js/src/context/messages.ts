/* The messages of the shown chat. */

import { inner, type Operation } from "../index.js";
import type { Intent } from "../intents.js";
import type { WriteResult } from "../outbox.js";
import type { Message } from "../replica.js";
import { Base, type Key } from "./base.js";
import { swipe as swipeIntent } from "../swipes.js";
import { mergeMessage } from "./merges.js";

const { append, batch, remove } = inner;

const SYSTEM = new Set(
  "HELP WELCOME EMPTY GENERIC NARRATOR COMMENT SLASH_COMMANDS FORMATTING HOTKEYS MACROS WELCOME_PROMPT ASSISTANT_NOTE ASSISTANT_MESSAGE".split(" "),
);

export class Messages extends Base {
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
    const intent = append(many);
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
    if (many.length) await this.write(held.chat, many.length === 1 ? many[0]! : batch(many), silent);
  }

  /** Take messages out, by index or id, as one commit; they are given back. With `swipe` only that swipe of one message. */
  async deleteMessages(index: Key | readonly Key[], { swipe, silent = false }: { swipe?: number; silent?: boolean } = {}): Promise<any> {
    const { chat } = this.current();
    const isMany = Array.isArray(index);
    const ids = new Set((isMany ? index : [index as Key]).map((key) => this.known(key)));
    const found = chat.messages.filter((message) => ids.has(message.id));
    if (swipe !== undefined) {
      if (ids.size !== 1) throw new TypeError("`swipe` goes with one message");
      await this.write(chat, swipeIntent(found[0]!.id, { action: "delete", swipe }), silent);
      const now = chat.message(found[0]!.id) ?? found[0];
      return isMany ? [now] : now;
    }
    if (ids.size) await this.write(chat, remove([...ids]), silent);
    return isMany ? found : found[0];
  }

  /** Put a system message at the end of the shown chat; it is stored like any other. Its index. */
  async sendSystemMessage(type: string, text = "", extra: object = {}): Promise<number> {
    if (!SYSTEM.has(String(type).toUpperCase())) throw new TypeError(`a system message is one of ${[...SYSTEM].join(", ")}`);
    return this.addMessages({ name: "System", is_user: false, is_system: true, send_date: new Date().toISOString(), mes: text, extra: { ...extra, type: type.toLowerCase() } });
  }

  // -- deprecated

  /** Deprecated: addMessages. */
  addOneMessage(message: object): Promise<number> {
    return this.addMessages(message);
  }

  /** Deprecated: addMessages. */
  appendChatMessages(messages: readonly object[]): Promise<number[]> {
    return this.addMessages(messages);
  }

  /** Deprecated: deleteMessages. */
  deleteLastMessage(): Promise<Message> {
    return this.deleteMessages(this.chat.length - 1);
  }

  /** Deprecated: deleteMessages. */
  deleteMessage(index: Key, swipe?: number): Promise<Message> {
    return this.deleteMessages(index, swipe === undefined ? {} : { swipe });
  }

  /** Deprecated: updateMessages. */
  updateMessageBlock(index: number, message: object): Promise<void> {
    return this.updateMessages({ index, patch: message });
  }

  /** Deprecated: updateMessages, deleteMessages. RFC 6902 on the array of messages. */
  patchChatMessages(operations: readonly Operation[]): Promise<WriteResult> {
    const under = (pointer: string) => `/messages${pointer}`;
    return this.current().chat.patch(null, operations.map((one) => ({ ...one, path: under(one.path), ...(one.from === undefined ? {} : { from: under(one.from) }) })));
  }
}
