// A SillyTavern-style extension: code that changes `chat` in place and calls saveChat() goes on as it is, and what travels
// is what changed: appends, patches of single messages, deletions, as one durable commit. Never the whole chat.
//
//     const store = await incrementalSave(client, "character:Alice/First meeting");
//     context.chat = store.chat; context.chatMetadata = store.metadata; context.saveChat = store.save;
import { difference, newMessageId } from "tellback";

export async function incrementalSave(client, address) {
  const live = await client.open(address, { create: true });
  const copy = (value) => structuredClone(value);
  // What other programs on the page read and change, and as it was at the last save.
  const chat = copy(live.messages);
  const metadata = copy(live.metadata);
  let known = { chat: new Map(live.messages.map((message) => [message.id, message])), metadata: live.metadata };
  const bytes = { sent: 0, whole: 0, saves: 0 };
  const size = (value) => new TextEncoder().encode(JSON.stringify(value, (_key, inner) => (typeof inner === "bigint" ? String(inner) : inner))).length;

  async function save() {
    for (const message of chat) message.id ??= newMessageId();
    const now = { chat: new Map(copy(chat).map((message) => [message.id, message])), metadata: copy(metadata) };
    const asked = [];
    const gone = [...known.chat.keys()].filter((id) => !now.chat.has(id));
    if (gone.length) asked.push(["delete", gone]);
    for (const [id, message] of now.chat) {
      const operations = known.chat.has(id) ? difference(known.chat.get(id), message) : [];
      // Only what this page changed: what others wrote into the same message meanwhile stays.
      if (operations.length) asked.push(["patch", id, operations]);
    }
    const added = [...now.chat.values()].filter(({ id }) => !known.chat.has(id));
    if (added.length) asked.push(["append", added]);
    const merge = difference(known.metadata, now.metadata);
    if (merge.length) asked.push(["updateMetadata", () => now.metadata]);
    bytes.saves++;
    bytes.whole += size([{ chat_metadata: metadata }, ...chat]);
    if (!asked.length) return;
    bytes.sent += asked.reduce((sum, [, ...given]) => sum + size(given.map((one) => (typeof one === "function" ? merge : one))), 0);
    await live.batch((batch) => asked.forEach(([verb, ...given]) => batch[verb](...given)));
    known = now;
  }

  // What others change comes into the same array; what this page changed and did not save yet is not touched.
  live.on("committed", ({ mine, effects }) => {
    if (mine) return;
    for (const id of new Set(effects.flatMap((effect) => effect.message ?? (effect.messages ?? []).map((one) => one.id ?? one)))) {
      const index = chat.findIndex((message) => message.id === id);
      const message = live.message(id);
      if (index >= 0 && difference(known.chat.get(id), chat[index]).length) continue;
      if (message) chat.splice(index < 0 ? live.messages.indexOf(message) : index, index < 0 ? 0 : 1, copy(message));
      else if (index >= 0) chat.splice(index, 1);
      message ? known.chat.set(id, message) : known.chat.delete(id);
    }
  });
  return { chat, metadata, save, bytes, live };
}
