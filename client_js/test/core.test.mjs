// The SDK alone, without the modules beside it; and what becomes of an open chat when one is loaded later.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { WebSocket } from "ws";
import { client, Server, until } from "./server.mjs";

const server = new Server();
const folder = join(server.data, "data", "default-user", "group chats");
before(() => {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "Damaged.jsonl"), '{"chat_metadata":{}}\n{"name":"Alice","mes":"one"}\n{"name":"Ali\n{"name":"Alice","mes":"three"}\n');
  writeFileSync(join(folder, "Corrupt.jsonl"), '{"chat_metadata":{}}\n{"name":"Alice","mes":"one"}\n');
  writeFileSync(join(folder, "Corrupt.luker-state.broken.json"), '{"n":');
  writeFileSync(join(folder, "Corrupt.luker-state.whole.json"), '{"n":1}');
  return server.start();
});
after(() => server.end());

/** The start and the text of a reply that another program is writing, frame by frame. */
async function producer(chat) {
  const socket = new WebSocket(server.url, ["tellback.v1"]);
  const told = [];
  socket.on("message", (data) => told.push(JSON.parse(String(data))));
  await new Promise((resolve) => socket.once("open", resolve));
  const ask = async (frame, answer) => {
    socket.send(JSON.stringify(frame));
    return until(() => told.find(({ type, id }) => type === answer && (frame.id === undefined || id === frame.id)), answer);
  };
  await ask({ type: "hello", protocol: 1, session: "a-producer-of-the-tests", token: null }, "welcome");
  const { head, next_op: op } = await ask({ type: "open", id: 1, chat, since: null }, "opened");
  await ask({ type: "generation-start", id: 2, chat, op, base: head.integrity, generation: "g-1", target: { kind: "message" }, reply: { name: "Alice" } }, "ack");
  const say = (text, offset) => socket.send(JSON.stringify({ type: "generation-delta", chat, generation: "g-1", offset, text }));
  say("Once ", 0);
  return { say, end: () => ask({ type: "generation-end", id: 3, chat, op: op + 1, generation: "g-1", length: 10 }, "ack"), close: () => socket.close() };
}

test("every entry of the package is there, and documented", async () => {
  const page = readFileSync(new URL("../../docs/JAVASCRIPT.md", import.meta.url), "utf8");
  const { exports } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url)));
  for (const [name, { types, default: module }] of Object.entries(exports)) {
    assert.ok(page.includes("`tellback" + name.slice(1) + "`"), name);
    readFileSync(new URL(`../${types}`, import.meta.url));
    readFileSync(new URL(`../${module}`, import.meta.url));
  }
});

test("a chat without the modules beside it, and replies that are followed from the moment that it has them", async () => {
  const one = await client(server);
  const chat = await one.open("group:Alone", { create: true });
  await chat.append({ id: "a", mes: "hi" });
  for (const verb of ["generate", "history", "floorState", "state", "swipeAdd", "rename"]) assert.ok(!(verb in chat), verb);
  for (const verb of ["listChats", "createChat"]) assert.ok(!(verb in one), verb);
  const other = await producer("group:Alone");
  // Somebody's reply is a commit like any other.
  await until(() => chat.head.seq > 1);
  const { Generation } = await import("../dist/generations.js");
  assert.deepEqual(chat.generations, []);
  await until(() => chat.generations[0]?.text === "Once ");
  const [reply] = chat.generations;
  assert.ok(reply instanceof Generation);
  const heard = (async () => {
    let text = "";
    for await (const piece of reply) text += piece;
    return text;
  })();
  other.say("upon ", 5);
  await other.end();
  assert.equal(await heard, "Once upon ");
  assert.equal((await reply.stored()).state, "stored");
  assert.deepEqual(chat.messages.map(({ mes }) => mes), ["hi", "Once upon "]);
  // What is opened later is followed from its beginning.
  const again = await one.open("group:Later", { create: true });
  const started = new Promise((resolve) => again.on("generation-started", resolve));
  other.close();
  const { close } = await producer("group:Later");
  assert.equal((await started).id, "g-1");
  close();
  await one.close();
});

test("text that a crash took from the server comes back from a tab that watched it", async () => {
  const one = await client(server);
  const chat = await one.open("group:Salvage", { create: true });
  await chat.append({ id: "a", name: "User", is_user: true, mes: "And?" });
  const { say } = await producer("group:Salvage");
  say("upon a time", 5);
  await until(() => chat.generations[0].text === "Once upon a time");
  assert.deepEqual((await chat.preview()).map(({ name, mes }) => [name, mes]), [["User", "And?"], ["Alice", "Once upon a time"]]);
  assert.deepEqual(chat.messages.map(({ mes }) => mes), ["And?"]);
  await server.kill();
  await server.start();
  one.reconnect();
  const other = await client(server);
  const theirs = await other.open("group:Salvage");
  await until(() => theirs.generations[0]?.text === "Once upon a time");
  assert.equal((await chat.generations[0].cancel()).state, "cancelled");
  assert.deepEqual(chat.messages.map(({ mes }) => mes), ["And?", "Once upon a time"]);
  await Promise.all([one.close(), other.close()]);
});

test("text that the server does not take back is given back once", async () => {
  let refused = 0;
  class Refusing extends WebSocket {
    send(data) {
      const { type, salvage, chat, generation } = JSON.parse(data);
      if (type !== "generation-attach" || !salvage) return super.send(data);
      refused++;
      const error = { type: "error", id: null, chat, generation, code: "overloaded", message: "No room.", retry: "backoff" };
      this.emit("message", Buffer.from(JSON.stringify(error)), false);
    }
  }
  const one = await client(server, { WebSocket: Refusing });
  const chat = await one.open("group:Refused", { create: true });
  const { say } = await producer("group:Refused");
  say("upon a time", 5);
  await until(() => chat.generations[0].text === "Once upon a time");
  await server.kill();
  await server.start();
  one.reconnect();
  await until(() => refused && chat.generations[0].text !== "Once upon a time");
  assert.ok("Once upon a time".startsWith(chat.generations[0].text));
  assert.equal(refused, 1);
  await chat.generations[0].cancel();
  assert.equal(refused, 1);
  await one.close();
});

test("states asked for together, of which one cannot be read", async () => {
  const one = await client(server);
  await import("../dist/states.js");
  const chat = await one.open("group:Corrupt");
  const found = await Promise.allSettled(["whole", "broken", "none", "whole"].map((namespace) => chat.state(namespace).get()));
  assert.deepEqual(found.map(({ value, reason }) => reason?.code ?? value), [{ n: 1 }, "state-corrupt", undefined, { n: 1 }]);
  await assert.rejects(chat.state("broken").update(() => ({ n: 2 })), ({ code }) => code === "state-corrupt");
  assert.deepEqual(await chat.states(["whole", "none"]), { whole: { n: 1 }, none: undefined });
  await one.close();
});

test("what is wrong with a damaged file reaches the app, and the server alone says what it still takes", async () => {
  const one = await client(server);
  const chat = await one.open("group:Damaged");
  assert.equal(chat.status, "read-only");
  assert.deepEqual(chat.damage.map(({ line }) => line), [3]);
  assert.ok(chat.damage[0].problem);
  await assert.rejects(chat.append({ mes: "no" }), ({ code, retry }) => code === "read-only" && retry === "after-sync");
  assert.deepEqual(chat.messages.map(({ mes }) => mes), ["one", "three"]);
  await import("../dist/life.js");
  await chat.rename("Damaged no less");
  await until(() => chat.name === "group:Damaged no less");
  assert.equal(chat.status, "read-only");
  await one.close();
});

test("a tab that was too slow is told, and has the whole chat", async () => {
  let socket;
  class Kept extends WebSocket {
    constructor(...given) {
      super(...given);
      socket = this;
    }
  }
  const [one, other] = await Promise.all([client(server, { WebSocket: Kept }), client(server)]);
  const chat = await one.open("group:Slow", { create: true });
  const theirs = await other.open("group:Slow");
  const told = [];
  chat.on("behind", (event) => told.push(event));
  const { head } = chat;
  // What the server says past its bound; nothing else of it is feigned.
  socket.emit("message", JSON.stringify({ type: "behind", chat: "group:Slow", from: head, to: head }), false);
  assert.equal(chat.status, "syncing");
  await theirs.append({ mes: "meanwhile" });
  await until(() => chat.messages.length === 1 && chat.status === "synced");
  assert.deepEqual(told.map(({ from, to }) => [from, to]), [[head, head]]);
  await Promise.all([one.close(), other.close()]);
});

test("an exit is told although other conflicts wait", async () => {
  const [one, other] = await Promise.all([client(server), client(server)]);
  const chat = await one.open("group:Conflicts", { create: true });
  await chat.append([{ id: "a", mes: "a" }, { id: "b", mes: "b" }]);
  const theirs = await other.open("group:Conflicts");
  const heard = [];
  one.on("conflicted", ({ conflict }) => heard.push(conflict));
  const edit = (chat, id, value) => chat.patch(id, [{ op: "replace", path: "/mes", value }]);
  const lost = [];
  for (let round = 0; lost.length < 2; round++) {
    const id = "ab"[lost.length];
    const [, mine] = await Promise.allSettled([edit(theirs, id, `theirs ${round}`), edit(chat, id, `mine ${round}`)]);
    if (mine.reason?.conflict) lost.push(mine.reason.conflict);
    for (const conflict of theirs.conflicts) conflict.takeTheirs();
    await until(() => chat.head.integrity === theirs.head.integrity);
  }
  assert.deepEqual(heard, lost);
  assert.deepEqual(one.conflicts, lost);
  assert.equal(lost[0].handle, chat);
  const told = [];
  for (const name of ["changed", "status"]) chat.on(name, () => told.push(name));
  one.on("changed", () => told.push("client"));
  lost[0].takeTheirs();
  assert.deepEqual(told, ["changed", "client"]);
  lost[1].takeTheirs();
  assert.deepEqual(told, ["changed", "client", "changed", "status", "client"]);
  await Promise.all([one.close(), other.close()]);
});

test("the conflicts of a tab that died are told to the one that took over", async () => {
  const { MemoryOutbox } = await import("../dist/memory.js");
  const { Locks } = await import("./server.mjs");
  const [outbox, locks] = [new MemoryOutbox(), new Locks()];
  const dead = await client(server, { outbox, locks });
  const chat = await dead.open("group:Left", { create: true });
  await chat.append({ id: "a", mes: "a" });
  await server.kill();
  chat.patch("a", [{ op: "replace", path: "/mes", value: "of the dead" }]).catch(() => {});
  await until(async () => (await outbox.load(dead.session)).length === 1);
  await dead.close(0);
  await server.start();
  const other = await client(server);
  await (await other.open("group:Left")).patch("a", [{ op: "replace", path: "/mes", value: "of the living" }]);
  const living = await client(server, { outbox, locks });
  const heard = [];
  const changed = [];
  living.on("conflicted", ({ conflict }) => heard.push(conflict));
  living.on("changed", () => changed.push(living.pending + living.conflicts.length));
  await until(() => heard.length === 1);
  assert.deepEqual(living.conflicts, heard);
  heard[0].takeTheirs();
  assert.deepEqual(living.conflicts, []);
  await until(async () => !(await outbox.load(dead.session)).length);
  await until(() => changed.at(-1) === 0);
  await Promise.all([other.close(), living.close()]);
});

test("silence is asked whether the server is there, and its answer keeps the connection", async () => {
  const sent = [];
  class Quick extends WebSocket {
    send(data) {
      sent.push(JSON.parse(data));
      super.send(data);
    }
    emit(name, data, ...given) {
      const frame = name === "message" && JSON.parse(String(data));
      return super.emit(name, frame?.type === "welcome" ? Buffer.from(JSON.stringify({ ...frame, heartbeat_ms: 30 })) : data, ...given);
    }
  }
  const one = await client(server, { WebSocket: Quick });
  await until(() => sent.filter(({ type }) => type === "ping").length > 2);
  assert.equal(sent.filter(({ type }) => type === "hello").length, 1);
  await one.close();
});
