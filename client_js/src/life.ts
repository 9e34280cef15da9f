/* How chats, characters and presets are made, renamed, branched, deleted and brought back. Loading this gives chats the verbs
   of `ChatLife` and clients those of `Lives`; it is `tellback/life`. */

import type { Handle } from "./handle.js";
import type { OwnerName } from "./ids.js";
import { Chat, Client, inner, TellbackError } from "./index.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { Write } from "./replica.js";

const { live, mixin, payload, refused } = inner;

const RESTORES_MAX = 8;

/** What belongs to a chat that is open. */
export abstract class ChatLife {
  /** @internal */
  abstract readonly client: Client;
  /** @internal */
  abstract write(intent: Intent): Promise<WriteResult>;

  /** Give the chat another name (the name alone); its state goes along. */
  rename(to: string): Promise<WriteResult> {
    return this.write(live({ type: "chat-rename", to }));
  }

  /** Put the chat into the trash; afterwards this handle is over. */
  remove(force = false): Promise<WriteResult> {
    return this.write(live({ type: "chat-delete", ...(force ? { force } : {}) }));
  }

  /** A new chat with everything up to and with a message, opened; the message gets a link to it. */
  async branch(message: string, { to, kind = "branch", swipe }: { to?: string; kind?: "branch" | "checkpoint"; swipe?: number } = {}): Promise<Chat> {
    const write = { type: "chat-branch", message, kind, ...(to === undefined ? {} : { to }), ...(swipe === undefined ? {} : { swipe }) };
    const { branch } = await this.write(live(write, (view) => view().messages.has(message)));
    return this.client.open(branch!.chat);
  }
}

/** What belongs to no open chat. */
export abstract class Lives {
  /** @internal */
  abstract ask<Answer>(request: Write): Promise<Answer>;
  /** @internal */
  abstract open(name: string): Promise<Chat>;
  /** @internal */
  abstract owner(name: OwnerName): Promise<Handle>;

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
}

declare module "./chat.js" {
  interface Chat extends Omit<ChatLife, "client" | "write"> {}
}
declare module "./client.js" {
  interface Client extends Omit<Lives, "ask" | "open" | "owner"> {}
}
mixin(Chat, ChatLife);
mixin(Client, Lives);
