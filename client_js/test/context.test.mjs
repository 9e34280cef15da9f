// The extension API against the real server, in Node.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { createContext, EventTypes } from "../dist/context.js";
import "../dist/history.js";
import { client, holding, Server, until } from "./server.mjs";

const server = new Server();
before(() => {
  // A card is any picture that has the character's name.
  mkdirSync(join(server.data, "data", "default-user", "characters"), { recursive: true });
  mkdirSync(join(server.data, "data", "default-user", "chats", "Alice"), { recursive: true });
  writeFileSync(join(server.data, "data", "default-user", "characters", "Alice.png"), Buffer.from("89504e470d0a1a0a0000000d49484452", "hex"));
  return server.start();
});
after(() => server.end());

const shown = async (act, options = { chat: "group:Shown" }) => {
  const one = await client(server, options.WebSocket ? { WebSocket: options.WebSocket } : {});
  if (options.chat) await one.open(options.chat, { create: true });
  const context = await createContext(one, options);
  const told = [];
  for (const name of Object.values(EventTypes)) context.eventSource.on(name, (...given) => void told.push([name, ...given]));
  try {
    await act(context, told, one);
  } finally {
    await context.close();
    await one.close();
  }
};

test("messages, by index and id, with the events of their commits", () => shown(async (context, told) => {
  assert.equal(await context.addMessages({ name: "User", is_user: true, mes: "hi" }), 0);
  assert.deepEqual(await context.addMessages([{ mes: "a", extra: { k: { x: 1 } } }, { mes: "b" }]), [1, 2]);
  await context.updateMessages([{ index: 1, patch: { extra: { k: { y: 2 } } } }, { id: context.chat[2].id, patch: { mes: "B" } }]);
  assert.deepEqual(context.getMessage(1).extra, { k: { x: 1, y: 2 } });
  await context.updateMessages({ index: 1, patch: { extra: { only: 1 } } }, { deep: false });
  assert.deepEqual(context.getMessage(1).extra, { only: 1 });
  const deleted = await context.deleteMessages([2, 0, 2]);
  assert.deepEqual(deleted.map(({ mes }) => mes), ["hi", "B"]);
  await context.addMessages({ mes: "nobody hears" }, { silent: true });
  assert.equal(context.getMessageCount(), 2);
  assert.equal(context.getMessage(7), null);
  await assert.rejects(context.updateMessages({ index: 9, patch: {} }), (error) => error.code === "message-unknown");
  assert.throws(() => (context.chat[0].mes = "x"), TypeError);
  await context.eventsDelivered();
  assert.deepEqual(told.map(([name, index]) => [name, index]), [
    ["message_sent", 0], ["message_received", 1], ["message_received", 2], ["message_edited", 1], ["message_updated", 1], ["message_edited", 2],
    ["message_updated", 2], ["message_edited", 1], ["message_updated", 1], ["message_deleted", 1], ["message_deleted", 1],
  ]);
}));

test("deprecated verbs do what they did", () => shown(async (context) => {
  await context.addOneMessage({ mes: "a" });
  await context.appendChatMessages([{ mes: "b" }, { mes: "c" }]);
  await context.updateMessageBlock(1, { mes: "B" });
  await context.patchChatMessages([{ op: "move", from: "/0", path: "/2" }, { op: "add", path: "/0/extra", value: { k: 1 } }]);
  assert.deepEqual(context.chat.map(({ mes, extra }) => [mes, extra?.k]), [["B", 1], ["c", undefined], ["a", undefined]]);
  assert.equal((await context.deleteLastMessage()).mes, "a");
  assert.equal((await context.deleteMessage(0)).mes, "B");
  assert.deepEqual(context.chat.map(({ mes }) => mes), ["c"]);
}, { chat: "group:Deprecated" }));

test("metadata, states and floor states", () => shown(async (context) => {
  assert.equal(await context.saveChatMetadata({ note: { a: 1 } }), true);
  assert.deepEqual(context.chat_metadata.note, { a: 1 });
  assert.equal(await context.getChatState("plugin"), null);
  await Promise.all(Array.from({ length: 20 }, () => context.updateChatState("plugin", (state) => ({ n: (state.n ?? 0) + 1 }))));
  assert.deepEqual(await context.getChatStateBatch(["plugin", "none"]), { plugin: { n: 20 }, none: null });
  assert.deepEqual(await context.updateChatState("plugin", () => null), { ok: true, updated: false, state: { n: 20 } });
  assert.equal((await context.updateChatState("BAD NAME", () => ({}))).ok, false);
  assert.deepEqual((await context.patchChatState("plugin", await context.buildObjectPatchOperationsAsync({ n: 20 }, { n: 21 }))).state, { n: 21 });
  assert.equal((await context.deleteChatState("plugin")).updated, true);
  await context.setCharacterState("Alice.png", "mine", { x: 1 });
  assert.deepEqual(await context.getCharacterState("Alice.png", "mine"), { x: 1 });
  await context.setCharacterState("Alice.png", "mine", null);
  assert.equal(await context.getCharacterState("Alice.png", "mine"), null);
  await context.addMessages([{ mes: "one" }, { mes: "two" }]);
  const floor = await context.createFloorState({ namespace: "Score" });
  assert.ok(Object.isFrozen(floor));
  assert.equal(await floor.update((state) => ({ ...state, hp: 1 })), true);
  assert.equal(await floor.update((state) => state, { floor: 99 }), false);
  assert.deepEqual(await floor.get(), { hp: 1 });
  await context.deleteMessages(context.chat.length - 1);
  await until(async () => (await floor.get())?.hp === undefined);
  floor.destroy();
  assert.equal(await floor.update(() => ({ hp: 2 })), false);
}));

test("swipes", () => shown(async (context, told, one) => {
  await context.addMessages([{ mes: "hi", is_user: true }, { id: "s", mes: "a" }]);
  await (await one.open("group:Swipes")).swipeAdd("s", "b");
  assert.equal(await context.swipe.left(), true);
  assert.equal(context.chat[1].mes, "a");
  assert.equal(await context.swipe.to(null, "right", { forceMesId: "s", forceSwipeId: 1 }), true);
  assert.equal(await context.swipe.right(), false);
  assert.equal(context.swipe.isAllowed(), true);
  assert.equal(context.swipe.state(), "none");
  await context.deleteMessages("s", { swipe: 0 });
  assert.deepEqual(context.chat[1].swipes, ["b"]);
  await context.eventsDelivered();
  assert.deepEqual(told.map(([name]) => name).filter((name) => /swipe/.test(name)), ["message_swiped", "message_swiped", "message_swiped", "message_swipe_deleted"]);
}, { chat: "group:Swipes" }));

test("the life of chats", () => shown(async (context, told) => {
  await context.selectCharacter("Alice.png");
  assert.equal(context.characterId, 0);
  const first = context.getCurrentChatId();
  await context.sendSystemMessage("GENERIC", "loaded");
  assert.equal(context.chat[0].extra.type, "generic");
  await context.renameChat(first, "Second");
  await until(() => context.getCurrentChatId() === "Second");
  await context.doNewChat();
  const second = context.getCurrentChatId();
  assert.notEqual(second, "Second");
  assert.deepEqual((await context.getPastCharacterChats()).map(({ file_id }) => file_id).sort(), [second, "Second"].sort());
  await context.openCharacterChat("Second.jsonl");
  assert.equal(context.chat.length, 1);
  await context.reloadCurrentChat();
  await context.saveChat();
  context.setExtensionPrompt("k", "text", 1, 0);
  assert.deepEqual(Object.keys(context.extensionPrompts), ["k"]);
  await context.clearChat({ clearData: true });
  assert.deepEqual([context.chat.length, Object.keys(context.extensionPrompts).length], [0, 0]);
  await context.deleteCharacterChat(0, "Second");
  assert.equal(context.getCurrentChatId(), undefined);
  assert.equal(await context.closeCurrentChat(), true);
  await context.eventsDelivered();
  const names = new Set(told.map(([name]) => name));
  for (const name of ["chat_created", "chat_renamed", "chat_deleted", "chat_id_changed"]) assert.ok(names.has(name), name);
}, {}));

test("media helpers work on plain messages", () => shown(async (context) => {
  const message = { extra: { image: "b.png", image_swipes: ["a.png", "b.png"], file: { url: "f" } } };
  context.ensureMessageMediaIsArray(message);
  assert.deepEqual(message.extra.media.map(({ url }) => url), ["a.png", "b.png"]);
  assert.deepEqual([context.getMediaDisplay(message), context.getMediaIndex(message)], ["gallery", 1]);
}));

test("docs/EXTENSION_API.md tells where each name is", () => shown(async (context) => {
  const page = readFileSync(new URL("../../docs/EXTENSION_API.md", import.meta.url), "utf8");
  const rowsOf = (heading) => page.split(`## ${heading}\n`)[1].split("\n## ")[0].split("\n").filter((line) => line.startsWith("| `"))
    .map((row) => row.split("|").slice(1).map((cell) => cell.trim().replaceAll("`", "")));
  const owners = { swipe: context.swipe, FloorState: await context.createFloorState("ns") };
  const rows = rowsOf("Every name of the seed");
  for (const [seed, , here] of rows) {
    if (here === "front end") assert.ok(!(seed in context), seed);
    else if (seed === "getContext") assert.equal(here, "createContext");
    else {
      assert.equal(here, seed.replace(/^instance\./, "FloorState."));
      const [owner, name] = here.includes(".") ? here.split(".") : ["", here];
      assert.ok(name in (owners[owner] ?? context), here);
    }
  }
  assert.ok(rows.length > 50);
  const events = rowsOf("Events").flatMap(([name]) => name.split(", "));
  assert.deepEqual(events.sort(), Object.keys(EventTypes).sort());
  for (const [, name] of page.split("## In JavaScript")[1].split("Beside the seed there are ")[1].split(";")[0].matchAll(/`(\w+)`/g)) assert.equal(typeof context[name], "function", name);
}));

test("events wait in a bounded queue, and those of a chat end where another is shown", () => shown(async (context, told, one) => {
  const chat = await one.open("group:Queue");
  let release;
  context.eventSource.once(EventTypes.CHAT_METADATA_CHANGED, () => new Promise((resolve) => (release = resolve)));
  await chat.updateMetadata({ held: true });
  await until(() => release);
  await context.addMessages({ mes: "told to nobody" });
  await one.open("group:Another", { create: true });
  await context.openChat("group:Another");
  release();
  await context.eventsDelivered();
  assert.deepEqual(told.map(([name]) => name), ["tellback_chat_metadata_changed", "chat_id_changed"]);
  told.length = 0;
  release = undefined;
  context.eventSource.once(EventTypes.CHAT_METADATA_CHANGED, () => new Promise((resolve) => (release = resolve)));
  await context.saveChatMetadata({ held: true });
  await until(() => release);
  await context.addMessages(Array.from({ length: 1100 }, (_, index) => ({ mes: String(index) })));
  release();
  await context.eventsDelivered();
  const changed = told.findIndex(([name]) => name === "chat_id_changed");
  assert.ok(changed > 0 && told.length < 200, `${changed} of ${told.length}`);
  // After it, what came later is told as ever.
  assert.deepEqual(told.at(-1).slice(0, 2), ["message_received", 1099]);
}, { chat: "group:Queue" }));

test("what came between the parts of a snapshot stands once in the order", () => {
  const { held, hold, hear, WebSocket } = holding();
  return shown(async (context, told, one) => {
    await context.addMessages(Array.from({ length: 40 }, (_, index) => ({ id: `m${index}`, mes: `${index} ${"words ".repeat(1000)}` })));
    const other = await client(server);
    const theirs = await other.open("group:Parts");
    await theirs.backUp();
    const [{ backup }] = (await theirs.backups()).backups;
    await theirs.append({ id: "later", mes: "not in the backup" });
    await until(() => context.chat.length === 41);
    hold(({ type, part, of }) => type === "snapshot-part" && part === of);
    await theirs.restoreBackup(backup, { force: true });
    await until(() => held.length);
    await theirs.append({ id: "a", mes: "between the parts" });
    await theirs.append({ id: "b", mes: "and another" });
    await theirs.delete("m0");
    await until(() => held.filter(({ frame }) => frame.type === "integrity").length === 3);
    await context.eventsDelivered();
    told.length = 0;
    // Commits may overtake what is left of a snapshot.
    held.push(...held.splice(0, 1));
    hear();
    await until(() => one.status === "connected" && context.chat.at(-1)?.id === "b");
    await context.addMessages({ id: "c", mes: "after it" });
    await context.eventsDelivered();
    assert.deepEqual(context.chat.map(({ id }) => id), [...Array.from({ length: 39 }, (_, index) => `m${index + 1}`), "a", "b", "c"]);
    assert.deepEqual(told.map(([name, index]) => [name, index]), [["chat_id_changed", "Parts"], ["message_received", 39], ["message_received", 40], ["message_received", 41]]);
    await other.close();
  }, { chat: "group:Parts", WebSocket });
});

test("a reply that the server ends is told as the swipe or the continuation that it is", () => shown(async (context, told, one) => {
  await context.addMessages([{ mes: "And?", is_user: true }, { id: "c", name: "Alice", mes: "Once " }, { id: "s", name: "Alice", mes: "Never." }]);
  const chat = await one.open("group:Ended");
  const producer = await client(server);
  const theirs = await producer.open("group:Ended");
  for (const target of [{ continuing: "c" }, { swipeOf: "s" }]) (await theirs.generate([], { ...target, leaseS: 1 })).push("upon a time");
  await until(() => chat.generations.length === 2 && chat.generations.every(({ text }) => text === "upon a time"));
  await context.eventsDelivered();
  told.length = 0;
  // Nobody ends them: their producer is gone.
  await producer.close(0);
  await until(() => told.filter(([name]) => name === "message_updated").length === 2);
  assert.deepEqual(chat.messages.map(({ mes }) => mes), ["And?", "Once upon a time", "upon a time"]);
  const about = (id) => told.filter(([name, , info]) => name.startsWith("message_") && info.message_id === id);
  assert.deepEqual(about("c"), ["message_edited", "message_updated"].map((name) => [name, 1, { message_id: "c" }]));
  assert.deepEqual(about("s"), [["message_swiped", 2, { message_id: "s", swipe_id: 1 }], ["message_updated", 2, { message_id: "s" }]]);
}, { chat: "group:Ended" }));

for (const [what, at, end] of [
  ["the client does", "group:Reloaded", (one) => one.close(0)],
  ["the chat is closed", "group:Reloaded too", async (one) => {
    const chat = await one.open("group:Reloaded too");
    for (const conflict of chat.conflicts) conflict.takeTheirs();
    await chat.close();
  }],
]) test(`reloading ends when ${what}, although a conflict waits or waited`, () => {
  const { held, hold, hear, WebSocket } = holding();
  let isDeaf = false;
  let isAnswered = false;
  class Deaf extends WebSocket {
    emit(name, ...given) {
      const { type } = name === "message" ? JSON.parse(String(given[0])) : {};
      if (isDeaf && type === "integrity") return true;
      isAnswered ||= type === "history";
      return super.emit(name, ...given);
    }
  }
  return shown(async (context, told, one) => {
    await context.addMessages({ id: "a", mes: "a" });
    const other = await client(server);
    const theirs = await other.open(at);
    hold();
    await theirs.patch("a", [{ op: "replace", path: "/mes", value: "theirs" }]);
    const writing = (await one.open(at)).patch("a", [{ op: "replace", path: "/mes", value: "mine" }]);
    await until(() => held.some(({ frame }) => frame.type === "conflict"));
    hear();
    await assert.rejects(writing, ({ code }) => code === "conflict");
    isDeaf = true;
    await theirs.append({ mes: "never heard of" });
    let isOver = false;
    const reloading = context.reloadCurrentChat().then(() => (isOver = true));
    await until(() => isAnswered);
    assert.equal(isOver, false);
    await Promise.all([end(one), reloading]);
    await other.close();
  }, { chat: at, WebSocket: Deaf });
});
