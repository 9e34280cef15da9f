/* Swipes: the other texts of a message, of which one is shown. Loading this gives chats and batches the verbs of `Swipes`; it
   is `tellback/swipes`. */

import { Batch, Chat, inner } from "./index.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { Message, Write } from "./replica.js";

const { beside, equal, isObject, mixin, payload, refused } = inner;

const WORKING_COPY = ["send_date", "gen_started", "gen_finished", "extra"];

/** @internal */
export function swipe(message: string, request: { action: "add" | "select" | "delete"; swipe?: number; content?: object; select?: boolean }): Intent {
  const stored: Write = payload({ type: "swipe", message, ...request }, "");
  let seen: Message | undefined;
  return {
    parts(view) {
      if (request.swipe !== undefined && !(request.swipe >= 0)) throw refused("swipe-unknown", `There is no swipe ${request.swipe}.`, "/swipe");
      seen = view().messages.get(message);
      return [stored];
    },
    repeatable(view) {
      const now = view().messages.get(message);
      // One more swipe goes behind whatever is there; an ordinal means another swipe when the message has changed.
      return now !== undefined && (request.action === "add" || equal(seen, now));
    },
  };
}

/** The verbs that a chat and a batch share. */
export abstract class Swipes<Done> {
  /** @internal */
  abstract act(make: () => Intent): Done;

  /** Put a swipe behind the others and show it, unless `select` is false. `content` is its text, or an object with `mes`. */
  swipeAdd(message: string, content: string | object, select = true): Done {
    return this.act(() => swipe(message, { action: "add", content: isObject(content) ? content : { mes: content }, select }));
  }

  swipeSelect(message: string, ordinal: number): Done {
    return this.act(() => swipe(message, { action: "select", swipe: ordinal }));
  }

  /** Take a swipe away; the only one is refused. */
  swipeDelete(message: string, ordinal: number): Done {
    return this.act(() => swipe(message, { action: "delete", swipe: ordinal }));
  }
}

/** @internal The message as it will be, as far as it can be told here. */
export function swiped(message: Message, write: Write): Message {
  const texts: string[] = [...(message.swipes ?? [message.mes])];
  const first = Object.fromEntries(WORKING_COPY.filter((member) => Object.hasOwn(message, member)).map((member) => [member, message[member]]));
  const infos: any[] = [...(message.swipe_info ?? [first])];
  let ordinal: number = message.swipe_id ?? 0;
  if (write.action === "add") {
    const { mes, ...info } = write.content;
    infos[texts.length] = info;
    texts.push(mes);
    if (write.select !== false) ordinal = texts.length - 1;
  } else if (!(write.swipe in texts)) {
    return message;
  } else if (write.action === "select") {
    ordinal = write.swipe;
  } else {
    if (texts.length < 2) return message;
    texts.splice(write.swipe, 1);
    infos.splice(write.swipe, 1);
    if (ordinal > write.swipe || ordinal >= texts.length) ordinal--;
  }
  if (ordinal === message.swipe_id && write.action !== "delete") return { ...message, swipes: texts, swipe_info: infos };
  const rest = Object.fromEntries(Object.entries(message).filter(([member]) => !WORKING_COPY.includes(member)));
  const info = isObject(infos[ordinal]) ? infos[ordinal] : {};
  return { ...rest, ...info, mes: texts[ordinal]!, swipes: texts, swipe_info: infos, swipe_id: ordinal };
}

declare module "./chat.js" {
  interface Chat extends Omit<Swipes<Promise<WriteResult>>, "act"> {}
  interface Batch extends Omit<Swipes<void>, "act"> {}
}
mixin(Chat, Swipes);
mixin(Batch, Swipes);
beside.meanings.swipe = (write, { messages }) => {
  const message = messages.get(write.message);
  return message ? [{ op: "patch", message: write.message, patch: [{ op: "replace", path: "", value: swiped(message, write) }] }] : [];
};
