/* A chat as the user holds it: the live document and its writes; what it shares with other owners is in `handle`. */

import type { Conflict } from "./conflict.js";
import { refused } from "./errors.js";
import type { Damage, Version } from "./frames.js";
import { Handle } from "./handle.js";
import * as intents from "./intents.js";
import { mixin } from "./mixin.js";
import type { WriteResult } from "./outbox.js";
import type { Operation } from "./patch.js";
import type { Message } from "./replica.js";
import { equal, stringify } from "./values.js";

/** Of one append when a whole chat is copied; well below a frame. */
const APPENDED_UNITS_MAX = 256 << 10;

/** The verbs that a chat and a batch share; what they give is a promise, or nothing in a batch. */
export abstract class Verbs<Done> {
  /** Store it now, for a chat; collect it, for a batch. */
  abstract act(make: () => intents.Intent): Done;

  /** Put one message or several at the end. A message without `id` gets one. */
  append(messages: object | readonly object[]): Done {
    return this.act(() => intents.append(Array.isArray(messages) ? messages : [messages]));
  }

  /** RFC 6902 operations on a message, or a function of it; on the whole chat when `message` is null. */
  patch(message: string | null, change: readonly Operation[] | intents.Updater): Done {
    return this.act(() => {
      if (typeof change !== "function") return intents.patch(message, change);
      if (message === null) throw new TypeError("a function changes one message: name it");
      return intents.updateMessage(message, change);
    });
  }

  /** Take messages out. */
  delete(messages: string | readonly string[]): Done {
    return this.act(() => intents.remove(typeof messages === "string" ? [messages] : messages));
  }

  /** Change the metadata by a function of it, or merge an object into it (RFC 7386; null removes). */
  updateMetadata(change: intents.Updater | object): Done {
    return this.act(() => intents.metadata(typeof change === "function" ? { update: change as intents.Updater } : { merge: change }));
  }

  /** Replace the whole metadata. */
  setMetadata(metadata: object): Done {
    return this.act(() => intents.metadata({ set: metadata }));
  }
}

/** Writes to one chat, collected and then stored all or nothing, as one commit. States must have been read before. */
export class Batch extends Verbs<void> {
  /** @internal */
  readonly collected: intents.Intent[] = [];

  act(make: () => intents.Intent): void {
    this.collected.push(make());
  }
}

export interface Chat extends Verbs<Promise<WriteResult>> {}
export class Chat extends Handle {
  /** The permanent id. */
  get chatId(): string {
    return this.subscription.chatId;
  }

  /** The messages now: confirmed ones, and own ones that wait for their answer. Frozen; another array after every change. */
  get messages(): readonly Message[] {
    return this.subscription.view().all;
  }

  /** The message with this id. */
  message(id: string): Message | undefined {
    return this.subscription.view().messages.get(id);
  }

  /** With the status `read-only`: what is wrong with the chat's file, by line. */
  get damage(): readonly Damage[] {
    return this.subscription.damage;
  }

  /** Whether what is shown of a message is stored: nothing of it waits for an answer. */
  isSaved(id: string): boolean {
    return this.subscription.view().messages.get(id) === this.subscription.replica!.document.messages.get(id);
  }

  get metadata(): any {
    return this.subscription.view().metadata;
  }

  /** The confirmed version of messages and metadata. */
  get version(): Version {
    return this.subscription.replica!.document.version;
  }

  async act(make: () => intents.Intent): Promise<WriteResult> {
    return this.write(make());
  }

  /** Store what `collect` asks for all or nothing, as one commit. */
  async batch(collect: (batch: Batch) => void | Promise<void>): Promise<WriteResult> {
    const batch = new Batch();
    await collect(batch);
    return this.write(intents.batch(batch.collected));
  }

  /** @internal Exit 3: mine as a new chat. */
  override async saveMineAs(conflict: Conflict, name: string): Promise<Chat> {
    const { all, metadata } = conflict.mine;
    const made = await this.client.open(name, { create: true });
    // An attempt that was interrupted is taken up again; anything else that stands there is somebody's.
    if (!equal(made.messages, all.slice(0, made.messages.length))) throw refused("exists", `${name} exists and holds something else.`, "/chat");
    await made.setMetadata("integrity" in metadata ? { ...metadata, integrity: made.chatId } : metadata);
    let page: Message[] = [];
    let units = 0;
    for (const message of all.slice(made.messages.length)) {
      const length = stringify(message).length;
      if (page.length && units + length > APPENDED_UNITS_MAX) {
        await made.append(page);
        page = [];
        units = 0;
      }
      page.push(message);
      units += length;
    }
    if (page.length) await made.append(page);
    this.takeTheirs(conflict);
    return made;
  }
}

mixin(Chat, Verbs);
