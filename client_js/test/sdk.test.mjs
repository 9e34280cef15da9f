// The SDK against the real server, in Node.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { WebSocket } from "ws";
import "../dist/catalog.js";
import "../dist/floors.js";
import "../dist/generations.js";
import "../dist/history.js";
import "../dist/life.js";
import { MemoryOutbox } from "../dist/memory.js";
import "../dist/states.js";
import "../dist/swipes.js";
import { client, holding, Locks, Server, until } from "./server.mjs";

const server = new Server();
before(() => {
  const characters = join(server.data, "data", "default-user", "characters");
  mkdirSync(characters, { recursive: true });
  writeFileSync(join(characters, "Bob.png"), Buffer.from("89504e470d0a1a0a0000000d49484452", "hex"));
  return server.start();
});
after(() => server.end());

let chats = 0;
const name = () => `group:Chat ${++chats}`;
const texts = (chat) => chat.messages.map(({ mes }) => mes);
const refused = (promise, code) => assert.rejects(promise, (error) => error.code === code || assert.fail(`${error.stack} is not ${code}`));
/** A WebSocket whose connections are counted. */
const counted = (Kind = WebSocket) => {
  const sockets = [];
  return { sockets, WebSocket: class extends Kind {
    constructor(...given) {
      super(...given);
      sockets.push(this);
    }
  } };
};
const together = (act) => async () => {
  const [one, other] = await Promise.all([client(server), client(server)]);
  try {
    await act(one, other);
  } finally {
    await Promise.all([one.close(), other.close()]);
  }
};

test("all verbs of messages, and both replicas are equal", together(async (one, other) => {
  const at = name();
  const mine = await one.open(at, { create: true });
  const theirs = await other.open(at);
  const { messageIds: [id] } = await mine.append({ name: "User", is_user: true, mes: "hi", extra: { n: 9007199254740993n } });
  assert.equal(mine.message(id).mes, "hi");
  await mine.patch(id, [{ op: "replace", path: "/mes", value: "hello" }]);
  await mine.patch(id, (message) => void (message.extra.more = [1, 2]));
  await mine.append([{ mes: "a" }, { mes: "b" }, { mes: "c" }]);
  await mine.delete(mine.messages[2].id);
  await mine.swipeAdd(mine.messages[1].id, "A");
  assert.deepEqual(mine.messages[1].swipes, ["a", "A"]);
  await mine.swipeDelete(mine.messages[1].id, 1);
  await refused(mine.swipeDelete(mine.messages[1].id, 0), "swipe-last");
  await mine.updateMetadata({ note: "n", tags: { x: 1 } });
  await mine.updateMetadata((metadata) => ({ ...metadata, count: mine.messages.length }));
  await mine.patch(null, [{ op: "replace", path: "/messages/2/mes", value: "C" }]);
  await until(() => theirs.head.integrity === mine.head.integrity);
  assert.deepEqual(texts(mine), ["hello", "a", "C"]);
  assert.deepEqual(theirs.messages, mine.messages);
  assert.deepEqual(theirs.metadata, { note: "n", tags: { x: 1 }, count: 3 });
  assert.equal(theirs.message(id).extra.n, 9007199254740993n);
  assert.throws(() => (mine.messages[0].mes = "changed in place"), TypeError);
  const fresh = await client(server);
  assert.deepEqual((await fresh.open(at)).messages, mine.messages);
  await fresh.close();
  await refused(mine.patch("nobody", [{ op: "remove", path: "/mes" }]), "message-unknown");
  await refused(one.open("group:not there"), "not-found");
  await refused(mine.append({ mes: "\ud83d" }), "bad-json");
}));

test("an own write shows at once, and is saved when it resolves", together(async (one) => {
  const chat = await one.open(name(), { create: true });
  const told = [];
  chat.on("changed", () => told.push(texts(chat).join()));
  const writing = chat.append({ id: "mine", mes: "at once" });
  assert.deepEqual([texts(chat), chat.pending, chat.isSaved("mine"), chat.status], [["at once"], 1, false, "syncing"]);
  await writing;
  assert.deepEqual([chat.pending, chat.isSaved("mine"), chat.status], [0, true, "synced"]);
  assert.deepEqual(told.at(-1), "at once");
  await Promise.all([chat.updateMetadata({ a: { x: 1 } }), chat.updateMetadata({ a: { y: 2 } }), chat.updateMetadata({ b: 1 }), chat.updateMetadata({ b: null })]);
  assert.deepEqual(chat.metadata, { a: { x: 1, y: 2 } });
  const many = Array.from({ length: 300 }, (_, index) => chat.patch("mine", (message) => ({ ...message, n: index })));
  await chat.saved();
  await Promise.all(many);
  assert.equal(chat.message("mine").n, 299);
}));

test("states: functions count exactly, data conflicts have three exits", together(async (one, other) => {
  const at = name();
  const mine = await one.open(at, { create: true });
  const theirs = await other.open(at);
  await Promise.all(Array.from({ length: 50 }, (_, index) => (index % 2 ? mine : theirs).state("count").update((state) => ({ n: (state.n ?? 0) + 1 }))));
  assert.deepEqual(await mine.state("count").get(), { n: 50 });
  assert.equal(await mine.state("nothing").get(), undefined);
  await mine.batch((batch) => {
    batch.append({ mes: "with a state" });
    batch.state("count").merge({ last: "batch" });
  });
  await until(() => theirs.head.seq === mine.head.seq);
  assert.deepEqual(await theirs.state("count").get(), { n: 50, last: "batch" });
  await mine.append({ id: "m", mes: "one" });
  await until(() => theirs.message("m"));
  const fight = async (word) => {
    const lost = await Promise.allSettled([mine.patch("m", [{ op: "replace", path: "/mes", value: `${word} mine` }]), theirs.patch("m", [{ op: "replace", path: "/mes", value: `${word} theirs` }])]);
    const at = lost.findIndex(({ status }) => status === "rejected");
    assert.equal(lost[at].reason.code, "conflict");
    assert.equal([mine, theirs][at].status, "conflicted");
    return [[mine, theirs][at], lost[at].reason.conflict, [mine, theirs][1 - at]];
  };
  let [loser, conflict, winner] = await fight("first");
  conflict.takeTheirs();
  assert.equal(loser.message("m").mes, winner.message("m").mes);
  [loser, conflict, winner] = await fight("second");
  await conflict.applyMineAgain();
  await until(() => winner.message("m").mes === loser.message("m").mes);
  assert.equal(loser.conflicts.length, 0);
  await winner.updateMetadata({ integrity: "of the source" });
  await until(() => loser.metadata.integrity);
  [loser, conflict, winner] = await fight("third");
  const saved = await conflict.saveMineAs(name());
  assert.deepEqual(saved.messages, conflict.mine.all);
  // SillyTavern tells chats apart by it.
  assert.deepEqual(saved.metadata, { ...conflict.mine.metadata, integrity: saved.chatId });
  assert.notEqual(saved.message("m").mes, loser.message("m").mes);
  assert.equal(loser.status, "synced");
  await mine.state("count").delete();
  assert.equal(await mine.state("count").get(), undefined);
}));

test("floor states follow swipes", together(async (one) => {
  const chat = await one.open(name(), { create: true });
  await chat.append([{ id: "a", mes: "a" }, { id: "b", mes: "b" }]);
  const score = chat.floorState(" Score ");
  await score.update((state) => ({ ...state, hp: 10 }));
  await score.patch([{ op: "add", path: "/gold", value: 1 }], { floor: 0 });
  assert.deepEqual(await score.get(), { hp: 10, gold: 1 });
  await chat.swipeAdd("b", "another b");
  await until(async () => (await score.get()).hp === undefined);
  await chat.swipeSelect("b", 0);
  await until(async () => (await score.get()).hp === 10);
}));

test("a reply is written here, watched there, and stopped from there", together(async (one, other) => {
  const at = name();
  const mine = await one.open(at, { create: true });
  const theirs = await other.open(at);
  const watched = new Promise((resolve) => theirs.on("generation-started", async ({ id }) => {
    let text = "";
    for await (const piece of theirs.generation(id)) text += piece;
    resolve(text);
  }));
  const reply = await mine.generate({ name: "User", is_user: true, mes: "And?" }, { reply: { name: "Alice" } });
  for (const piece of ["Once ", "upon ", "a \ud83d", "\udc4d time"]) reply.push(piece, "hm ");
  const result = await reply.end({ extra: { model: "m" } });
  assert.equal(result.state, "stored");
  assert.equal(await watched, "Once upon a 👍 time");
  assert.equal(mine.message(result.message).mes, "Once upon a 👍 time");
  assert.equal(mine.message(result.message).extra.reasoning, "hm hm hm hm ");
  await refused(mine.generate([], { swipeOf: result.message, leaseS: 300.5 }), "bad-frame");
  const second = await mine.generate([], { swipeOf: result.message, leaseS: 0.5 });
  second.push("half a ");
  await until(() => theirs.generations[0]?.text === "half a ");
  const stopped = await theirs.generations[0].cancel();
  assert.equal(stopped.state, "cancelled");
  assert.equal((await second.stored()).state, "cancelled");
  assert.throws(() => second.push("more"), (error) => error.code === "generation-over");
  assert.deepEqual(mine.message(result.message).swipes, ["Once upon a 👍 time", "half a "]);
}));

test("lives, lists, search, history and backups", together(async (one, other) => {
  const at = name();
  const chat = await one.createChat(at, { metadata: { note: "n" }, messages: [{ id: "x", mes: "a lost letter" }] });
  await refused(other.createChat(at), "exists");
  const watcher = await other.open(at);
  await chat.rename("Renamed chat");
  await until(() => watcher.name === "group:Renamed chat");
  const branch = await chat.branch("x");
  assert.deepEqual(texts(branch), ["a lost letter"]);
  await chat.append({ mes: "later" });
  assert.deepEqual(texts({ messages: (await chat.at(1)).messages }), ["a lost letter"]);
  assert.ok((await chat.history(1)).commits.length >= 2);
  const found = [];
  for await (const hit of one.searchChats("lost letter")) found.push(hit.chat);
  assert.ok(found.includes("group:Renamed chat"));
  await chat.backUp();
  const [backup] = (await chat.backups()).backups;
  await chat.delete("x");
  const replaced = new Promise((resolve) => chat.on("replaced", resolve));
  await chat.restoreBackup(backup.backup, { force: true });
  assert.equal((await replaced).reason, "restored");
  await until(() => chat.message("x"));
  const { chatId } = chat;
  await chat.remove(true);
  await refused(chat.append({ mes: "too late" }), "deleted");
  assert.ok((await one.trash()).entries.some(({ name }) => name === "group:Renamed chat"));
  const back = await one.restoreChat(chatId);
  assert.deepEqual(texts(back), ["a lost letter", "later"]);
  const listed = [];
  for await (const entry of one.listChats({ group: "*" })) listed.push(entry.chat);
  assert.ok(listed.includes("group:Renamed chat"));
}));

test("a conflict is told while another chat still waits for its answers", async () => {
  let isMute = false;
  class Mute extends WebSocket {
    send(...given) {
      if (!isMute) super.send(...given);
    }
  }
  const [one, other] = await Promise.all([client(server, { WebSocket: Mute }), client(server)]);
  const waiting = await one.open(name(), { create: true });
  const mine = await one.open(name(), { create: true });
  const theirs = await other.open(mine.name);
  await mine.append({ id: "m", mes: "one" });
  await until(() => theirs.message("m"));
  const say = (chat, value) => chat.patch("m", [{ op: "replace", path: "/mes", value }]);
  while (!mine.conflicts.length) {
    await Promise.allSettled([say(theirs, "theirs"), say(mine, "mine")]);
    for (const conflict of theirs.conflicts) conflict.takeTheirs();
  }
  isMute = true;
  waiting.append({ mes: "not answered" }).catch(() => {});
  await refused(Promise.race([one.saved(), new Promise((resolve) => setTimeout(resolve, 5000))]), "conflict");
  assert.equal(one.pending, 1);
  await Promise.all([one.close(0), other.close()]);
});

test("what is gone does not keep the client from telling that the rest is saved", together(async (one, other) => {
  const chat = await one.open(name(), { create: true });
  const rest = await one.open(name(), { create: true });
  const theirs = await other.open(chat.name);
  await theirs.append({ mes: "stored" });
  await until(() => chat.messages.length);
  const removing = chat.remove();
  assert.equal(one.pending, 1);
  await one.saved();
  await removing;
  await until(() => theirs.status === "offline");
  await Promise.all([one.saved(), other.saved()]);
  // Who asks about it alone hears what became of it.
  await Promise.all([chat, theirs].map((gone) => refused(gone.saved(), "deleted")));
  const writing = rest.append({ mes: "later" });
  assert.equal(one.pending, 1);
  await one.saved();
  assert.equal(one.pending, 0);
  await writing;
  await one.close();
  await refused(one.saved(), "client-closed");
}));

test("closing a chat that is gone lets go of it", async () => {
  const wire = holding();
  const { sockets, WebSocket: Counted } = counted(wire.WebSocket);
  const [one, other] = await Promise.all([client(server, { WebSocket: Counted }), client(server)]);
  const [mine, kept] = await Promise.all([one.open(name(), { create: true }), one.open(name(), { create: true })]);
  await mine.append({ mes: "stored" });
  const theirs = await other.open(mine.name);
  wire.hold();
  await theirs.remove(true);
  const late = mine.append({ mes: "late" });
  await until(() => wire.held.some(({ frame }) => frame.type === "integrity"));
  wire.hear();
  await refused(late, "conflict");
  // What waits for a decision is not let go of.
  await refused(mine.close(), "conflict");
  assert.deepEqual(one.conflicts, mine.conflicts);
  await refused(mine.conflicts[0].applyMineAgain(), "deleted");
  assert.equal(mine.conflicts.length, 1);
  mine.conflicts[0].takeTheirs();
  await kept.remove();
  const told = { mine: [], kept: [] };
  mine.on("status", ({ status }) => told.mine.push(status));
  kept.on("status", ({ status }) => told.kept.push(status));
  await Promise.all([mine.close(), theirs.close()]);
  await mine.close();
  sockets[0].terminate();
  await until(() => told.kept.includes("connecting") && one.status === "connected");
  assert.deepEqual(told.mine, []);
  await refused(mine.saved(), "deleted");
  await Promise.all([one.close(), other.close()]);
});

test("kill -9 of the server under two writers: every write arrives once, in order", together(async (one, other) => {
  const at = name();
  const chats = [await one.open(at, { create: true }), await other.open(at)];
  const writes = [];
  const write = async (count) => {
    for (let index = 0; index < count; index++) {
      for (const [who, chat] of chats.entries()) {
        const mes = `${who}:${writes.length}`;
        writes.push({ who, mes, done: chat.append({ mes }) });
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  };
  for (let round = 0; round < 2; round++) {
    const writing = write(40);
    await new Promise((resolve) => setTimeout(resolve, 15));
    await server.kill();
    assert.ok(chats[0].messages.length > 0);
    const restarted = server.start();
    await writing;
    await restarted;
    one.reconnect();
    other.reconnect();
  }
  await Promise.all(writes.map(({ done }) => done));
  await until(() => chats[0].head.integrity === chats[1].head.integrity);
  const fresh = await client(server);
  const stored = texts(await fresh.open(at));
  assert.deepEqual([...stored].sort(), writes.map(({ mes }) => mes).sort());
  for (const who of [0, 1]) {
    assert.deepEqual(stored.filter((mes) => mes.startsWith(`${who}:`)), writes.filter((one) => one.who === who).map(({ mes }) => mes));
  }
  assert.deepEqual(texts(chats[0]), stored);
  await fresh.close();
}));

test("what a dead tab left is sent once by a living one, in its name", async () => {
  const outbox = new MemoryOutbox();
  const locks = new Locks();
  const at = name();
  const dead = await client(server, { outbox, locks });
  const chat = await dead.open(at, { create: true });
  await chat.append({ mes: "seen by the server" });
  const url = server.url;
  await server.kill();
  const writes = [chat.append({ mes: "one" }), chat.append({ mes: "two" })];
  for (const write of writes) write.catch(() => {});
  await until(async () => (await outbox.load(dead.session)).length === 2);
  const left = await outbox.load(dead.session);
  // The page is gone; nothing of it runs any more.
  await dead.close(0);
  await server.start();
  assert.equal(server.url, url);
  assert.deepEqual(await outbox.load(dead.session), left);
  const [living, beside] = await Promise.all([client(server, { outbox, locks }), client(server, { outbox, locks })]);
  const again = await living.open(at);
  await until(() => again.messages.length === 3);
  await until(async () => !(await outbox.load(dead.session)).length);
  assert.deepEqual(texts(again), ["seen by the server", "one", "two"]);
  // A crash between the answer and its record: the same writes are there again, and change nothing.
  await outbox.write(dead.session, left.map((put) => ({ put })));
  const third = await client(server, { outbox, locks });
  await until(async () => !(await outbox.load(dead.session)).length);
  assert.deepEqual(texts(await third.open(at)), ["seen by the server", "one", "two"]);
  await Promise.all([living.close(), beside.close(), third.close()]);
});

test("a program that gives its session sends what it left", async () => {
  const [outbox, session] = [new MemoryOutbox(), "a-program-with-its-own-session"];
  const dead = await client(server, { session, outbox });
  const chat = await dead.open(name(), { create: true });
  await chat.append({ mes: "stored" });
  await server.kill();
  chat.append({ mes: "left" }).catch(() => {});
  await until(async () => (await outbox.load(session)).length === 1);
  await dead.close(0);
  await server.start();
  const again = await client(server, { session, outbox });
  const same = await again.open(chat.name);
  await same.append({ mes: "later" });
  assert.deepEqual(texts(same), ["stored", "left", "later"]);
  await again.close();
  assert.deepEqual(await outbox.load(session), []);
  const locks = new Locks();
  outbox.load = () => Promise.reject(new Error("cannot be read"));
  await refused(client(server, { session, outbox, locks }), "outbox");
  await until(() => !locks.held.size);
});

/** An own session that left writes for a chat: to be sent by the next client of the same session and outbox. */
async function leaving(write) {
  const options = { session: `a-program-that-leaves-${++chats}`, outbox: new MemoryOutbox() };
  const dead = await client(server, options);
  const chat = await dead.open(name(), { create: true });
  await chat.append({ id: "m", mes: "stored" });
  await server.kill();
  const writes = write(chat);
  for (const one of writes) one.catch(() => {});
  const kept = () => options.outbox.load(options.session);
  await until(async () => (await kept()).length === writes.length);
  await dead.close(0);
  await server.start();
  return { chat, options, kept };
}
const says = (value) => [{ op: "replace", path: "/mes", value }];

test("what an own session left for a chat that is gone is kept and told once, and sent although its numbers were used meanwhile", async () => {
  const { chat: { name: at, chatId }, options, kept } = await leaving((chat) => [
    chat.append({ id: "a", mes: "left" }), chat.patch("a", says("left, and changed")), chat.patch("m", says("changed")), chat.append({ id: "b", mes: "left last" }),
  ]);
  const other = await client(server);
  await (await other.open(at)).remove();
  const living = await client(server, options);
  const told = await new Promise((resolve) => living.on("changed", () => living.saved().catch(resolve)));
  assert.deepEqual([told.code, told.chatId], ["deleted", chatId]);
  await living.saved();
  assert.deepEqual([living.pending, (await kept()).length], [0, 4]);
  // The same session takes the numbers of the first two.
  await (await living.restoreChat(chatId)).append({ mes: "of the life after" });
  await living.close();
  assert.equal((await kept()).length, 4);
  const last = await client(server, options);
  const chat = await last.open(at);
  await last.saved();
  assert.deepEqual(texts(chat), ["changed", "of the life after", "left, and changed", "left last"]);
  await until(async () => !(await kept()).length);
  assert.deepEqual(texts(await other.open(`id:${chatId}`)), texts(chat));
  await Promise.all([last.close(), other.close()]);
});

test("what builds on a write whose number was used meanwhile does not pass for built on that", async () => {
  const { chat: { name: at, chatId }, options, kept } = await leaving((chat) => [chat.patch("m", says("left")), chat.patch("m", says("left, and changed"))]);
  const other = await client(server);
  await (await other.open(at)).remove();
  const living = await client(server, options);
  await refused(living.open(at), "deleted");
  const theirs = await other.restoreChat(chatId);
  await theirs.patch("m", says("theirs"));
  // Its number is that of the first one left; the second one's is free.
  await (await living.open(at)).append({ mes: "of the life after" });
  await living.close();
  const last = await client(server, options);
  const chat = await last.open(at);
  await refused(last.saved(), "conflict");
  await until(() => chat.conflicts.length === 2 && !chat.pending);
  assert.deepEqual(texts(chat), ["theirs", "of the life after"]);
  assert.equal(chat.conflicts[0].mine.messages.get("m").mes, "left");
  assert.equal((await kept()).length, 2);
  for (const conflict of chat.conflicts) conflict.takeTheirs();
  await Promise.all([last.close(), other.close()]);
});

test("what a dead tab left for a chat that is gone is kept, told once, and sent when the chat is open again", async () => {
  const outbox = new MemoryOutbox();
  const asked = [];
  const locks = new (class extends Locks {
    request(lock, ...given) {
      asked.push(lock);
      return super.request(lock, ...given);
    }
  })();
  const dead = await client(server, { outbox, locks });
  const chats = await Promise.all([dead.open(name(), { create: true }), dead.open(name(), { create: true })]);
  for (const chat of chats) await chat.append({ mes: "stored" });
  await server.kill();
  for (const chat of chats) chat.append({ mes: `left for ${chat.name}` }).catch(() => {});
  const kept = async () => (await outbox.load(dead.session)).map(({ owner }) => owner);
  await until(async () => (await kept()).length === 2);
  await dead.close(0);
  await server.start();
  const [gone, there] = chats;
  const other = await client(server);
  await (await other.open(gone.name)).remove();
  const { sockets, WebSocket: Counted } = counted();
  const living = await client(server, { outbox, locks, WebSocket: Counted });
  const told = await new Promise((resolve) => living.on("changed", () => living.saved().catch(resolve)));
  assert.deepEqual([told.code, told.chatId], ["deleted", gone.chatId]);
  assert.deepEqual(await kept(), [`id:${gone.chatId}`]);
  assert.equal(living.pending, 0);
  await living.saved();
  // It looks again, and connects no more.
  const [connected, times] = [sockets.length, asked.length];
  assert.deepEqual(texts(await living.open(there.name)), ["stored", `left for ${there.name}`]);
  await until(() => asked.length > times && !asked.slice(times).some((lock) => locks.held.has(lock)));
  assert.equal(sockets.length, connected);
  await living.saved();
  await other.restoreChat(gone.chatId);
  const back = await living.open(gone.name);
  await until(() => back.messages.length === 2);
  assert.deepEqual(texts(back), ["stored", `left for ${gone.name}`]);
  await until(async () => !(await kept()).length);
  await living.saved();
  await Promise.all([living.close(), other.close()]);
});

test("a character's state goes with its name, into the trash and back", together(async (one) => {
  const owner = await one.owner({ character: "Bob" });
  await owner.state("memory").set({ n: 1 });
  await one.renameOwner({ character: "Bob" }, "Robert");
  const renamed = await one.owner({ character: "Robert" });
  assert.deepEqual(await renamed.state("memory").get(), { n: 1 });
  await one.deleteOwner({ character: "Robert" });
  await refused(one.owner({ character: "Robert" }), "deleted");
  await one.restoreOwner({ character: "Robert" });
  assert.deepEqual(await (await one.owner({ character: "Robert" })).states(), { memory: { n: 1 } });
}));

test("a session has one user", async () => {
  const session = "one-session-for-two-tabs";
  const one = await client(server, { session });
  const other = await client(server, { session });
  await until(() => one.status === "closed");
  assert.equal(one.error.code, "session-taken-over");
  await other.close();
  await assert.rejects(client({ url: "ws://127.0.0.1:1/ws" }, { connectTimeoutMs: 50 }), (error) => error.code === "connection-lost");
});

test("a client that the server ended lets go of its session, its tabs and its outbox, and says why", async () => {
  const [outbox, locks, session] = [new MemoryOutbox(), new Locks(), "a-session-that-is-taken-over"];
  const one = await client(server, { session, outbox, locks });
  const chat = await one.open(name(), { create: true });
  const told = [];
  one.on("connection", (event) => told.push(event));
  // A program that knows nothing of this profile's locks.
  const elsewhere = await client(server, { session });
  await until(() => one.status === "closed");
  assert.deepEqual(told.map(({ status, error }) => [status, error?.code]), [["closed", "session-taken-over"]]);
  await Promise.all([one.saved(), one.connected(), chat.saved(), chat.append({ mes: "too late" }), one.open(name(), { create: true })].map((waiting) => refused(waiting, "session-taken-over")));
  const again = await client(server, { session, outbox, locks });
  await until(() => elsewhere.status === "closed");
  await again.close();
  assert.equal(one.error.code, "session-taken-over");
  await Promise.all([one.close(), elsewhere.close()]);
});

test("a client that the server does not take holds no lock", async () => {
  const locks = new Locks();
  await refused(client(server, { session: "short", outbox: new MemoryOutbox(), locks }), "protocol-violation");
  assert.deepEqual([...locks.held.keys()], []);
});

test("editing one message of 3,000 moves a thousandth of what a save of the whole chat does", async () => {
  let bytes = 0;
  const count = (data) => (bytes += Buffer.byteLength(String(data)));
  class Counted extends WebSocket {
    constructor(...given) {
      super(...given);
      this.on("message", count);
    }
    send(data) {
      count(data);
      super.send(data);
    }
  }
  const one = await client(server, { WebSocket: Counted });
  const at = name();
  const chat = await one.open(at, { create: true });
  const mes = "The rain had not stopped since noon, and the lamp on the stairs was out again. ".repeat(5);
  const messages = Array.from({ length: 3000 }, (_, index) => ({
    name: index % 2 ? "Alice" : "User", is_user: index % 2 === 0, is_system: false, send_date: "2026-01-05T15:12:00.000Z", mes: `${index}: ${mes}`, extra: {},
  }));
  for (let start = 0; start < 3000; start += 500) await chat.append(messages.slice(start, start + 500));
  // What is long comes in parts.
  assert.deepEqual((await chat.at(chat.version.seq)).messages, chat.messages);
  bytes = 0;
  await chat.patch(chat.messages[1500].id, (message) => void (message.mes += "!"));
  // SillyTavern: POST /api/chats/save with all messages; what HTTP adds is left out on both sides.
  const save = Buffer.byteLength(JSON.stringify({ ch_name: "Alice", file_name: "Chat", avatar_url: "Alice.png", chat: [{ user_name: "User", character_name: "Alice", chat_metadata: {} }, ...chat.messages] }));
  console.log(`${bytes} bytes both ways, a save ${save}: ${Math.round(save / bytes)} times as many`);
  assert.ok(save > 1000 * bytes, `${save} / ${bytes}`);
  await one.close();
});
