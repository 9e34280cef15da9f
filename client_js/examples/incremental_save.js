// A SillyTavern-style extension: code that changes `chat` in place and calls saveChat() goes on as it is, and what travels
// is what changed: appends, patches of single messages, deletions, as one durable commit. Never the whole chat.
//
//     const store = await incrementalSave(client, "character:Alice/First meeting");
//     context.chat = store.chat; context.chatMetadata = store.metadata; context.saveChat = store.save;
import { applyPatch, difference, newMessageId } from "tellback";

export async function incrementalSave(client, address) {
  const live = await client.open(address, { create: true });
  const copy = (value) => structuredClone(value);
  // What other programs on the page read and change, and as it was at the last save.
  const chat = copy(live.messages);
  const metadata = copy(live.metadata);
  let known = { chat: new Map(live.messages.map((message) => [message.id, message])), metadata: live.metadata };

  async function once() {
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
    const noted = difference(known.metadata, now.metadata);
    if (noted.length) asked.push(["updateMetadata", (there) => applyPatch(there, noted)]);
    if (!asked.length) return;
    const before = known;
    known = now; // What others change from here on comes on top of it.
    await live.batch((batch) => asked.forEach(([verb, ...given]) => batch[verb](...given))).catch((error) => {
      known = before;
      throw error;
    });
  }
  // One save after the other: the second one sends what the first one did not.
  let saving = Promise.resolve();
  const save = () => (saving = saving.catch(() => {}).then(once));

  // What others change comes into the same array; what this page changed and did not save yet is not touched.
  live.on("committed", ({ mine, effects }) => {
    if (mine) return;
    if (effects.some(({ op }) => op === "metadata") && !difference(known.metadata, metadata).length) {
      for (const member of Object.keys(metadata)) delete metadata[member];
      Object.assign(metadata, copy(live.metadata));
      known.metadata = live.metadata;
    }
    for (const id of new Set(effects.flatMap((effect) => effect.message ?? (effect.messages ?? []).map((one) => one.id ?? one)))) {
      const index = chat.findIndex((message) => message.id === id);
      const message = live.message(id);
      if (index >= 0 && difference(known.chat.get(id), chat[index]).length) continue;
      if (message) chat.splice(index < 0 ? live.messages.indexOf(message) : index, index < 0 ? 0 : 1, copy(message));
      else if (index >= 0) chat.splice(index, 1);
      message ? known.chat.set(id, message) : known.chat.delete(id);
    }
  });
  return { chat, metadata, save, live };
}
