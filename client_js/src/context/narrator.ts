/* What commits mean in the words of extensions: from effects to named events, with the indexes of the moment.

   - It sees every commit of a chat, in order; so an index is that of the chat right after the commit.
   - It reads the effects that the server wrote and knows no rule of its own.
   - A snapshot says what the chat is, not what happened: `CHAT_CHANGED`. */

import type { ChatEvents } from "../events.js";
import type { Effect } from "../replica.js";
import { EventTypes, type Told } from "./emitter.js";

/** The chat's name out of its address, or the name itself. */
export const nameAlone = (address: string): string => (address.startsWith("character:") ? address.slice(address.lastIndexOf("/") + 1) : address.replace(/^group:/, ""));

export class Narrator {
  /** By id, where it stands in the order. */
  private readonly places = new Map<string, number>();

  constructor(private order: string[], public name: string, private readonly ofGroup: boolean) {
    this.replaced(order);
  }

  replaced(order: string[]): void {
    this.order = order;
    this.places.clear();
    this.placeFrom(0);
  }

  tell(event: ChatEvents["committed"]): Told[] {
    const before = new Map(event.effects.flatMap((effect) => (effect.op === "delete" ? effect.messages.map((id) => [id, this.placeOf(id)] as const) : [])));
    for (const effect of event.effects) this.install(effect);
    const told: Told[] = [];
    // The server alone makes a link follow a chat that has another name: nothing was branched, nothing edited.
    const isLink = !event.mine && !event.by && event.effects.every(leadsOnly);
    for (const effect of event.effects) {
      switch (effect.op) {
        case "append":
        case "insert":
          for (const message of effect.messages) {
            const index = this.placeOf(message.id as string);
            const isUsers = message.is_user === true || (message.is_user === undefined && message.role === "user");
            if (index >= 0) told.push([isUsers ? EventTypes.MESSAGE_SENT : EventTypes.MESSAGE_RECEIVED, index, { message_id: message.id }]);
          }
          break;
        case "patch": {
          const index = this.placeOf(effect.message);
          if (index >= 0 && isLink) told.push([EventTypes.MESSAGE_UPDATED, index, { message_id: effect.message }]);
          else if (index >= 0) told.push(...patched(index, effect.message, effect.patch));
          break;
        }
        case "delete":
          for (const id of effect.messages) {
            const index = before.get(id)!;
            if (index >= 0) told.push([EventTypes.MESSAGE_DELETED, this.order.length, { index, message_id: id, message_ids: effect.messages }]);
          }
          break;
        case "metadata":
          told.push([EventTypes.CHAT_METADATA_CHANGED]);
          break;
        case "state":
        case "floor":
          told.push([EventTypes.CHAT_STATE_CHANGED, effect.namespace]);
          break;
        case "renamed":
          told.push(...this.renamed(effect.to));
          break;
        case "deleted":
          told.push(this.deleted());
      }
    }
    return told;
  }

  renamed(to: string): Told[] {
    const old = this.name;
    this.name = nameAlone(to);
    return old === this.name ? [] : [[EventTypes.CHAT_RENAMED, old, this.name]];
  }

  deleted(): Told {
    return [this.ofGroup ? EventTypes.GROUP_CHAT_DELETED : EventTypes.CHAT_DELETED, this.name];
  }

  private install(effect: Effect): void {
    if (effect.op === "append" || effect.op === "insert") {
      // What came between the parts of a snapshot stands in the order already.
      const ids = effect.messages.map((message) => message.id as string).filter((id) => !this.places.has(id));
      const after = effect.op === "append" ? this.order.length : effect.after === null ? 0 : this.placeOf(effect.after) + 1 || this.order.length;
      this.order.splice(after, 0, ...ids);
      this.placeFrom(after);
    } else if (effect.op === "delete") {
      let first = this.order.length;
      for (const id of effect.messages) {
        first = Math.min(first, this.places.get(id) ?? first);
        this.places.delete(id);
      }
      let at = first;
      for (const id of this.order.slice(first)) if (this.places.has(id)) this.order[at++] = id;
      this.order.length = at;
      this.placeFrom(first);
    }
  }

  private placeOf(id: string): number {
    return this.places.get(id) ?? -1;
  }

  /** What stands from `first` on was moved, or is new. */
  private placeFrom(first: number): void {
    for (let at = first; at < this.order.length; at++) this.places.set(this.order[at]!, at);
  }
}

/** What a patch of one message means. */
function patched(index: number, id: string, operations: readonly any[]): Told[] {
  let shown: number | undefined;
  let content = false;
  const removed: number[] = [];
  const links: [string, string][] = [];
  for (const { op, path, value } of operations) {
    const link = op === "add" || op === "replace" ? linked(path, value) : undefined;
    if (link) links.push(link);
    else if (!path.startsWith("/swipe") && !(path === "/extra" && JSON.stringify(value) === "{}")) content = true;
    if (path === "/swipe_id" && value !== undefined) shown = value;
    else if (op === "remove" && /^\/swipes\/\d+$/.test(path)) removed.push(+path.slice(8));
  }
  const info = { message_id: id };
  const told: Told[] = removed.map((swipe) => [
    EventTypes.MESSAGE_SWIPE_DELETED, index, { ...info, swipe_id: swipe, ...(shown === undefined ? {} : { new_swipe_id: shown }) },
  ]);
  if (!removed.length && shown !== undefined) told.push([EventTypes.MESSAGE_SWIPED, index, { ...info, swipe_id: shown }]);
  else if (!removed.length && content) told.push([EventTypes.MESSAGE_EDITED, index, info]);
  told.push([EventTypes.MESSAGE_UPDATED, index, info]);
  for (const [kind, branch] of links) told.push([EventTypes.CHAT_BRANCH_CREATED, { index, ...info, branch, kind }]);
  return told;
}

/** Kind and name of the chat that an operation links a message to. */
function linked(path: string, value: any): [string, string] | undefined {
  if (path === "/extra/bookmark_link" && typeof value === "string") return ["checkpoint", value];
  if (path === "/extra/branches" && Array.isArray(value) && value.length === 1) return ["branch", value[0]];
  return path.startsWith("/extra/branches/") && typeof value === "string" ? ["branch", value] : undefined;
}

/** As tellback_protocol.links.is_all: nothing is changed but where links lead. The server also ends replies by itself. */
function leadsOnly(effect: ChatEvents["committed"]["effects"][number]): boolean {
  const at = effect.op === "metadata" ? /^\/main_chat$/ : /^(\/swipe_info\/\d+)?\/extra\/(bookmark_link|branches\/\d+)$/;
  if (effect.op !== "metadata" && effect.op !== "patch") return false;
  return (effect.patch as { op: string; path: string }[]).every(({ op, path }) => op === "replace" && at.test(path));
}
