// The example: saves of a whole chat become what changed.
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { incrementalSave } from "../examples/incremental_save.js";
import { client, Server, until } from "./server.mjs";

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
