// The extension for SillyTavern on a page that does what SillyTavern 1.19 does: one array for every chat, one object of metadata
// a load, saves of the whole chat by fetch.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { WebSocket } from "ws";
import { client, Server, until } from "./server.mjs";

const server = new Server();
let extension;
const MARK = "39edbc3e-69fd-4020-a17d-69282e45d450";
const header = { user_name: "unused", character_name: "unused" };
const file = (name) => join(server.data, "data", "chats", "Pip", `${name}.jsonl`);
const changed = [];
const saves = [];
const page = { chat: [], chatMetadata: {}, chatId: undefined, characterId: 0, groupId: null, characters: [{ avatar: "Pip.png" }] };
const drawn = { getAttribute: () => String(page.drawn - 1), replaceChildren: () => (page.drawn = 0) };

before(async () => {
  mkdirSync(join(server.data, "data", "chats", "Pip"), { recursive: true });
  for (const name of ["one", "other"]) {
    const lines = [{ ...header, chat_metadata: {} }, ...[0, 1, 2].map((index) => ({ name: "Pip", is_user: false, mes: `${name} ${index}` }))];
    writeFileSync(file(name), lines.map((line) => JSON.stringify(line)).join("\n"));
  }
  await server.start();
  Object.assign(globalThis, {
    WebSocket, window: globalThis, location: { hostname: "127.0.0.1" }, localStorage: { getItem: () => server.url },
    document: { querySelector: () => drawn, querySelectorAll: () => page.chat },
    SillyTavern: { getContext: () => ({
      ...page, eventTypes: { CHAT_CHANGED: "chat" }, eventSource: { on: (_, listener) => changed.push(listener) },
      printMessages: () => (page.drawn = page.chat.length), updateMessageBlock: () => {}, addOneMessage: () => page.drawn++,
    }) },
    fetch: async (path, { body }) => {
      const { file_name: name, chat } = JSON.parse(body);
      if (path.endsWith("/get")) return Response.json(readFileSync(file(name), "utf8").split("\n").map((line) => JSON.parse(line)));
      saves.push(chat.length);
      writeFileSync(file(name), chat.map((line) => JSON.stringify(line)).join("\n"));
      return Response.json({ ok: true });
    },
  });
  extension = await import("../examples/sillytavern/index.js");
});
after(async () => {
  await (await extension.connected).close();
  await server.end();
});

const asked = (verb, fields) => fetch(`/api/chats/${verb}`, { body: JSON.stringify({ avatar_url: "Pip.png", ...fields }) });
const save = (chat = page.chat, file_name = page.chatId) => asked("save", { file_name, chat: [{ ...header, chat_metadata: page.chatMetadata }, ...chat] });

/** As SillyTavern loads a chat, and as it saves until the extension has it. */
async function show(name) {
  page.chatId = name;
  const [{ chat_metadata }, ...messages] = await (await asked("get", { file_name: name })).json();
  page.chatMetadata = { ...chat_metadata, integrity: chat_metadata.integrity ?? MARK };
  page.chat.splice(0, page.chat.length, ...messages);
  for (const listener of changed) listener(name);
  await until(() => page.chat[0].id);
}

test("SillyTavern's saves become what changed; others' messages come; another chat in the same array deletes nothing", async () => {
  const other = await client(server);
  await show("one");
  const live = await other.open("character:Pip/one");
  page.chat[1].mes = "edited";
  page.chat.push({ name: "User", is_user: true, mes: "new" });
  assert.equal((await save()).status, 200);
  await until(() => live.messages.length === 4);
  assert.deepEqual(live.messages.map(({ mes }) => mes), ["one 0", "edited", "one 2", "new"]);
  assert.equal(live.metadata.integrity, MARK);
  await live.append({ name: "Pip", is_user: false, mes: "from elsewhere" });
  await until(() => page.chat.at(-1).mes === "from elsewhere");
  assert.equal(page.drawn, 5);
  await show("other");
  page.chat.pop();
  await save();
  assert.deepEqual((await other.open("character:Pip/other")).messages.map(({ mes }) => mes), ["other 0", "other 1"]);
  assert.equal(live.messages.length, 5);
  assert.deepEqual(saves, []);
  await other.close();
});

test("a load anew, a branch, and a chat that tellback does not know are SillyTavern's own", async () => {
  await show("other");
  await asked("get", { file_name: "other" });
  page.chat.length = 0;
  await save([{ name: "Pip", mes: "greeting" }]);
  assert.deepEqual(saves.splice(0), [2], "nothing was taken for a deletion");
  await show("one");
  await save(page.chat.slice(0, 2));
  await save(page.chat, "a branch");
  assert.deepEqual(saves.splice(0), [3, 6]);
});
