/* The life of chats: which one is shown, and how they are made, renamed, listed and deleted. */

import type { HistoryFrame } from "../frames.js";
import { inner, type TellbackError } from "../index.js";
import { addressOf, Base, stripped, type Key } from "./base.js";
import { EventTypes } from "./emitter.js";
import { nameAlone } from "./narrator.js";

const { refused } = inner;

export interface PastChat {
  file_name: string;
  file_id: string;
  file_size: string;
  mes: string;
  last_mes: number;
}

export class Lives extends Base {
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
      const commits = (await this.client.ask<HistoryFrame>({ type: "history", chat: chat.subscription.address, after: chat.head.seq, limit: 1000 })).commits ?? [];
      const last = commits.at(-1)?.version.seq ?? 0;
      // While a conflict waits, the chat's own status tells of nothing else.
      while (chat.head.seq < last && !chat.subscription.error && this.client.status === "connected") {
        let stops: (() => void)[] = [];
        await new Promise<unknown>((resolve) => (stops = [chat.on("changed", resolve), chat.on("gone", resolve), chat.on("status", resolve), this.client.on("connection", resolve)]));
        for (const stop of stops) stop();
      }
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
  async getPastCharacterChats(characterId?: Key): Promise<PastChat[]> {
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

  // -- inside

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

function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(3, Math.floor(Math.log(bytes) / Math.log(1024)));
  return `${(bytes / 1024 ** power).toFixed(1)} ${["", "KB", "MB", "GB"][power]}`;
}
