/* Metadata, state documents and floor states, of the shown chat or of a `target`; states of characters. */

import type { Handle } from "../handle.js";
import { difference, type Operation, type TellbackError } from "../index.js";
import type { Intent } from "../intents.js";
import { state } from "../states.js";
import { Base, isOver } from "./base.js";
import { FloorState } from "./floors.js";
import { assignMetadata, reduceState } from "./merges.js";

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

export class States extends Base {
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

  // -- inside

  private characterOwner(avatar: string): Promise<Handle> {
    const character = avatar.replace(/\.png$/, "");
    return this.keep(`character:${character}`, () => this.client.owner({ character }));
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
}

/** A state is taken away whatever it holds by then. */
function takenAway(namespace: string): Intent {
  const intent = state(namespace, { delete: true });
  return { isFunction: true, parts: intent.parts, repeatable: () => true };
}
