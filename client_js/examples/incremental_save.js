// A SillyTavern-style extension: code that changes `chat` in place and calls saveChat() goes on as it is, and what travels
// is what changed: appends, patches of single messages, deletions, as one durable commit. Never the whole chat.
//
//     const store = await incrementalSave(client, "character:Alice/First meeting");
//     context.chat = store.chat; context.chatMetadata = store.metadata; context.saveChat = store.save;
//
// A program that has its array already gives it: `page` is { chat, metadata, create, changed(added, altered),
// isShown() }, and may have getters. sillytavern/index.js is such an extension of the real SillyTavern.
//
// A save that is refused rejects; what it was about stays in `chat` as unsaved, and the next save asks for it again.
import { applyPatch, difference, newMessageId } from "tellback";

export async function incrementalSave(client, address, page = { chat: [], metadata: {} }) {
  const live = await client.open(address, { create: page.create ?? true });
  const copy = (value) => structuredClone(value);
  const byId = (messages) => new Map(messages.map((message) => [message.id, message]));
  const differs = (one, other) => difference(one, other).length > 0;
  // What other programs on the page read and change, and as it was when it was last the same here and on the server.
  const { chat, changed, isShown = () => true } = page;
  let known = { chat: byId(live.messages), metadata: live.metadata };
  if (isShown()) {
    chat.splice(0, chat.length, ...copy(live.messages));
    become(page.metadata, live.metadata);
    changed?.(chat, []);
  }
  // While a save is on its way: what happened meanwhile. It is taken over when it is known what became of the save.
  let meanwhile;

  function become(metadata, value) {
    for (const member of Object.keys(metadata)) delete metadata[member];
    Object.assign(metadata, copy(value));
  }

  async function once() {
    if (!isShown()) throw new Error(`${address} is not shown any more.`);
    for (const message of chat) message.id ??= newMessageId();
    const now = { chat: byId(copy(chat)), metadata: copy(page.metadata) };
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
    const happened = (meanwhile = []);
    try {
      await live.batch((batch) => asked.forEach(([verb, ...given]) => batch[verb](...given)));
      known = now;
    } finally {
      meanwhile = undefined;
      for (const take of happened) take();
    }
  }
  // One save after the other: the second one sends what the first one did not.
  let saving = Promise.resolve();
  const save = () => (saving = saving.catch(() => {}).then(once));

  // What is stored comes into the same array; what this page changed and did not save yet is not touched.
  function take(ids, isNoted) {
    if (!isShown()) return;
    const { metadata } = page;
    if (isNoted && !differs(known.metadata, metadata)) become(metadata, live.metadata);
    if (isNoted && !differs(live.metadata, metadata)) known.metadata = live.metadata;
    const [added, altered] = [[], []];
    let isSame = true;
    for (const id of ids) {
      const index = chat.findLastIndex((message) => message.id === id);
      const [shown, before, message] = [chat[index], known.chat.get(id), live.message(id)];
      const isUnsaved = differs(before, shown) && differs(message, shown);
      if (message && !isUnsaved) known.chat.set(id, message);
      // What is unsaved here of a message that others took away is a message of its own.
      if (!message) known.chat.delete(id);
      if (isUnsaved || !differs(shown, message)) continue;
      isSame = false;
      if (message) {
        const taken = copy(message);
        chat.splice(shown ? index : live.messages.indexOf(message), shown ? 1 : 0, taken);
        (shown ? altered : added).push(taken);
      } else chat.splice(index, 1);
    }
    if (!isSame) changed?.(added, altered);
  }
  const happened = (act) => (meanwhile ? meanwhile.push(act) : act());
  const idsOf = ({ message, messages = [] }) => (message === undefined ? messages.map((one) => one.id ?? one) : [message]);
  live.on("committed", ({ effects }) => happened(() => take(new Set(effects.flatMap(idsOf)), effects.some(({ op }) => op === "metadata"))));
  live.on("replaced", () => happened(() => {
    take(new Set([...known.chat.keys(), ...live.messages.map(({ id }) => id)]), true);
    const places = new Map(live.messages.map(({ id }, index) => [id, index]));
    chat.sort((one, other) => (places.get(one.id) ?? places.size) - (places.get(other.id) ?? places.size));
  }));
  return { chat, get metadata() { return page.metadata; }, save, live };
}
