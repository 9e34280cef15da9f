/* The messages of a chat with the replies that are being written where they will stand. */

import type { Followed } from "./followed.js";
import type { ChatDocument, Message } from "./replica.js";
import { swiped } from "./swipes.js";

/** `entries` are what the chat's own document says of its generations. */
export function previewed(view: ChatDocument, entries: any, running: readonly Followed[]): readonly Message[] {
  const draft = view.copy();
  for (const { id, target, message, text, reasoning } of running) {
    const { after, reply = {} } = entries?.[id] ?? {};
    const meant = target.message === undefined ? undefined : draft.messages.get(target.message);
    const extra = reasoning ? { extra: { reasoning, ...reply.extra } } : {};
    if (!meant) {
      const { id: _, ...fields } = reply;
      const written = { id: message, ...fields, ...extra, [memberOf(fields)]: text };
      draft.apply({ op: "insert", after: after !== undefined && draft.messages.has(after) ? after : ([...draft.messages.keys()].at(-1) ?? null), messages: [written] });
    } else {
      const member = memberOf(meant);
      const more = target.kind === "swipe" ? swiped(meant, { type: "swipe", action: "add", content: { mes: text, ...extra } }) : { ...meant, [member]: `${meant[member]}${text}` };
      draft.apply({ op: "patch", message: target.message!, patch: [{ op: "replace", path: "", value: more as any }] });
    }
  }
  return draft.all;
}

/** Where the text of a message with these fields is. */
const memberOf = (fields: Message): string => (!("mes" in fields) && ("content" in fields || "role" in fields) ? "content" : "mes");
