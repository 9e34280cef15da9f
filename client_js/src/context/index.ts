/** Luker's and SillyTavern's API for extensions, under its own names, on a client. docs/EXTENSION_API.md lists every name. */

import "../catalog.js";
import type { Client } from "../client.js";
import "../generation.js";
import { inner } from "../index.js";
import "../life.js";
import "../swipes.js";
import { Base, type Key } from "./base.js";
import { EventSource, EventTypes } from "./emitter.js";
import { Lives, type PastChat } from "./lives.js";
import { ensureMessageMediaIsArray, getMediaDisplay, getMediaIndex } from "./media.js";
import { Messages } from "./messages.js";
import { Prompts } from "./prompts.js";
import { States, type StateResult, type Updater } from "./states.js";
import { Swipes } from "./swipes.js";

export { EventSource, EventTypes, type Key, type PastChat, type StateResult, type Updater };

/** What an extension holds. Made by `createContext`. */
export interface Context extends Lives, Messages, Prompts, States {}
export class Context extends Base {
  readonly ensureMessageMediaIsArray = ensureMessageMediaIsArray;
  readonly getMediaDisplay = getMediaDisplay;
  readonly getMediaIndex = getMediaIndex;
  readonly swipe = new Swipes(this);
}
for (const nouns of [Lives, Messages, Prompts, States]) inner.mixin(Context, nouns);

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
