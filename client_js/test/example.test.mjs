// The example: saves of a whole chat become what changed.
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import "../dist/history.js";
import "../dist/life.js";
import { incrementalSave } from "../examples/incremental_save.js";
import { client, holding, Server, until } from "./server.mjs";

const server = new Server();
before(() => server.start());
after(() => server.end());

test("a program that saves whole chats sends what changed, and hears of others", async () => {
  const [one, other] = await Promise.all([client(server), client(server)]);
  const mine = await incrementalSave(one, "group:Example");
  mine.chat.push(...Array.from({ length: 1000 }, (_, index) => ({ name: "User", is_user: true, mes: `${index}: ${"words ".repeat(60)}` })));
  await mine.save();
  const theirs = await incrementalSave(other, "group:Example");
  assert.equal(theirs.chat.length, 1000);
  mine.chat[500].mes += "!";
  mine.metadata.note = "n";
  mine.chat.splice(10, 1);
  mine.chat.push({ name: "User", is_user: true, mes: "last" });
  await Promise.all([mine.save(), mine.save()]);
  await until(() => theirs.chat.length === 1000 && theirs.chat.at(-1).mes === "last");
  assert.deepEqual(theirs.chat, mine.chat);
  theirs.chat[0].mes = "from the other page";
  theirs.metadata.theirs = true;
  await theirs.save();
  await until(() => mine.chat[0].mes === "from the other page");
  assert.deepEqual(mine.metadata, { note: "n", theirs: true });
  const third = await client(server);
  assert.deepEqual((await third.open("group:Example")).messages, mine.chat);
  await Promise.all([one, other, third].map((open) => open.close()));
});

/** A client that can be made to hear nothing for a while. */
async function hearing() {
  const { WebSocket, held, hold, hear } = holding();
  const hearAfter = async (last) => {
    await until(() => held.some(({ frame }) => frame.type === last));
    hear();
  };
  return { one: await client(server, { WebSocket }), hold, hearAfter };
}

const line = ({ id, mes }) => `${id}: ${mes}`;
const stored = async (address) => {
  const fresh = await client(server);
  const { messages } = await fresh.open(address);
  await fresh.close();
  return messages.map(line);
};

test("what others stored while a save was refused stays, and the next save sends what is still unsaved", async () => {
  const at = "group:Refused saves";
  const [{ one, hold, hearAfter }, other] = await Promise.all([hearing(), client(server)]);
  const mine = await incrementalSave(one, at);
  mine.chat.push(...["a", "b", "c", "d"].map((id) => ({ id, mes: id })));
  await mine.save();
  const theirs = await incrementalSave(other, at);
  const [a] = mine.chat;
  hold();
  theirs.chat[0].mes = "a of theirs";
  theirs.chat[1].mes = "b of theirs";
  theirs.chat.splice(2, 1);
  theirs.chat.push({ id: "e", mes: "e of theirs" });
  theirs.metadata.theirs = true;
  await theirs.save();
  a.mes = "a of mine";
  a.extra = { n: 1 };
  mine.metadata.mine = true;
  const saving = mine.save();
  saving.catch(() => {});
  await until(() => mine.live.pending);
  mine.chat.find(({ id }) => id === "d").mes = "d of mine";
  await hearAfter("conflict");
  await assert.rejects(saving, ({ code }) => code === "conflict");
  assert.deepEqual(mine.chat.map(line), ["a: a of mine", "b: b of theirs", "d: d of mine", "e: e of theirs"]);
  assert.equal(mine.chat[0], a);
  await mine.save();
  assert.deepEqual(await stored(at), ["a: a of mine", "b: b of theirs", "d: d of mine", "e: e of theirs"]);
  assert.deepEqual(mine.live.metadata, { mine: true, theirs: true });
  assert.deepEqual(mine.metadata, mine.live.metadata);
  await until(() => theirs.chat[0].mes === "a of mine" && theirs.chat[2].mes === "d of mine");
  assert.deepEqual(theirs.chat, mine.chat);
  await Promise.all([one.close(0), other.close()]);
});

test("what this page changed and did not save is touched by nobody, and what it saved is as the server made it", async () => {
  const at = "group:Unsaved";
  const [one, other] = await Promise.all([client(server), client(server)]);
  const mine = await incrementalSave(one, at);
  mine.chat.push({ id: "a", mes: "a", swipe_id: 0, swipes: ["a"] }, { id: "b", mes: "b" }, { id: "c", mes: "c" }, { id: "d", mes: "d" });
  await mine.save();
  const theirs = await incrementalSave(other, at);
  mine.chat[0].extra = { mine: true };
  mine.chat[1].mes = "b of mine";
  mine.chat.splice(2, 2);
  theirs.chat[0].mes = "a of theirs";
  theirs.chat.splice(1, 1);
  theirs.chat[1].mes = "c of theirs";
  theirs.chat.splice(2, 1);
  await theirs.save();
  await until(() => mine.live.head.seq === theirs.live.head.seq);
  assert.deepEqual(mine.chat.map(line), ["a: a", "b: b of mine"]);
  await mine.save();
  const [a] = mine.chat;
  assert.deepEqual([a.mes, a.swipes, a.extra], ["a of theirs", ["a of theirs"], { mine: true }]);
  assert.deepEqual(await stored(at), ["a: a of theirs", "b: b of mine"]);
  await until(() => theirs.chat.length === 2 && theirs.chat[1].mes === "b of mine");
  assert.deepEqual(theirs.chat, mine.chat);
  await Promise.all([one.close(), other.close()]);
});

test("a chat that is replaced is read again, with what this page did not save", async () => {
  const at = "group:Replaced";
  const [one, other] = await Promise.all([client(server), client(server)]);
  const mine = await incrementalSave(one, at);
  mine.chat.push(...["a", "b", "c", "d"].map((id) => ({ id, mes: id })));
  mine.metadata.note = "old";
  await mine.save();
  const theirs = await other.open(at);
  await theirs.backUp();
  const [{ backup }] = (await theirs.backups()).backups;
  mine.chat.splice(0, 1);
  mine.chat[0].mes = "b, later";
  mine.chat.push({ id: "e", mes: "e" });
  mine.metadata.note = "new";
  await mine.save();
  await until(() => theirs.message("e"));
  mine.chat[1].mes = "c, unsaved";
  mine.chat.splice(2, 1);
  mine.chat.push({ mes: "unsaved" });
  const replaced = new Promise((resolve) => mine.live.on("replaced", resolve));
  await theirs.restoreBackup(backup, { force: true });
  await replaced;
  assert.deepEqual(mine.chat.map(({ mes }) => mes), ["a", "b", "c, unsaved", "unsaved"]);
  assert.deepEqual(mine.metadata, { note: "old" });
  await mine.save();
  assert.deepEqual((await stored(at)).map((text) => text.split(": ")[1]), ["a", "b", "c, unsaved", "unsaved"]);
  await Promise.all([one.close(), other.close()]);
});

test("a save that is on its way when the chat is replaced is asked again by the next one", async () => {
  const at = "group:Replaced meanwhile";
  const [{ one, hold, hearAfter }, other] = await Promise.all([hearing(), client(server)]);
  const mine = await incrementalSave(one, at);
  mine.chat.push(...["a", "b"].map((id) => ({ id, mes: id })));
  await mine.save();
  const theirs = await other.open(at);
  await theirs.backUp();
  const [{ backup }] = (await theirs.backups()).backups;
  await theirs.patch("b", [{ op: "replace", path: "/mes", value: "b, later" }]);
  await until(() => mine.chat[1].mes === "b, later");
  hold();
  await theirs.restoreBackup(backup, { force: true });
  mine.chat[1].mes = "b of mine";
  mine.chat.push({ id: "c", mes: "c" });
  const saving = mine.save();
  saving.catch(() => {});
  await until(() => mine.live.pending);
  await hearAfter("reset");
  await assert.rejects(saving, ({ code }) => code === "conflict");
  assert.deepEqual(mine.chat.map(line), ["a: a", "b: b of mine", "c: c"]);
  await mine.save();
  assert.deepEqual(await stored(at), ["a: a", "b: b of mine", "c: c"]);
  await Promise.all([one.close(0), other.close()]);
});

test("the exits of a conflict are seen by the next save", async () => {
  const at = "group:Exits of a save";
  const [{ one, hold, hearAfter }, other] = await Promise.all([hearing(), client(server)]);
  const mine = await incrementalSave(one, at);
  mine.chat.push({ id: "a", mes: "a" });
  await mine.save();
  const theirs = await other.open(at);
  hold();
  await theirs.patch("a", [{ op: "replace", path: "/mes", value: "a of theirs" }]);
  mine.chat[0].mes = "a of mine";
  mine.chat.push({ id: "b", mes: "b" });
  const saving = mine.save();
  saving.catch(() => {});
  await hearAfter("conflict");
  const { conflict } = await saving.catch((error) => error);
  await conflict.applyMineAgain();
  const { head } = mine.live;
  await mine.save();
  assert.equal(mine.live.head, head);
  mine.chat[1].mes = "b, later";
  await mine.save();
  assert.deepEqual(await stored(at), ["a: a of mine", "b: b, later"]);
  await Promise.all([one.close(), other.close()]);
});
