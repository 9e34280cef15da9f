// Clients that do whatever they like over connections that break: in the end all hold the chat of the server.
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { WebSocket } from "ws";
import "../dist/states.js";
import "../dist/swipes.js";
import { client, Server, until } from "./server.mjs";

const SEEDS = Number(process.env.TELLBACK_JS_SEEDS ?? 4);
const ROUNDS = 120;
const server = new Server();
before(() => server.start());
after(() => server.end());

const drawing = (seed) => {
  let state = seed * 2654435761 + 1;
  return (below) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % below;
};

for (let seed = 1; seed <= SEEDS; seed++) {
  test(`three clients, seed ${seed}`, async () => {
    const draw = drawing(seed);
    const sockets = new Set();
    class Breaking extends WebSocket {
      constructor(...given) {
        super(...given);
        sockets.add(this);
        this.on("close", () => sockets.delete(this));
      }
    }
    const at = `group:Convergence ${seed}`;
    const clients = await Promise.all([1, 2, 3].map(() => client(server, { WebSocket: Breaking })));
    const chats = [];
    for (const one of clients) chats.push(await one.open(at, { create: true }));
    let counted = 0;
    const appended = new Set();
    const unwanted = new Set();
    const settled = [];
    const act = (chat, number) => {
      const { messages } = chat;
      const message = messages[draw(messages.length || 1)]?.id;
      const kind = draw(12);
      if (kind < 3 || message === undefined) {
        const id = `m${number}`;
        return chat.append({ id, mes: `text ${number}` }).then(() => appended.add(id));
      }
      switch (kind) {
        case 3: return chat.patch(message, (value) => void (value.n = (value.n ?? 0) + 1));
        case 4: return chat.patch(message, [{ op: "replace", path: "/mes", value: `patched ${number}` }]);
        case 5: return unwanted.add(message), chat.delete(message);
        case 6: return chat.swipeAdd(message, `swipe ${number}`);
        case 7: return chat.swipeSelect(message, 0);
        case 8: return chat.updateMetadata({ [`k${draw(3)}`]: number });
        case 9: return chat.updateMetadata((metadata) => ({ ...metadata, sum: (metadata.sum ?? 0) + 1 }));
        case 10: return chat.state("count").update((state) => ({ n: (state.n ?? 0) + 1 })).then(() => counted++);
        default:
          return chat.batch((batch) => {
            batch.append({ id: `b${number}`, mes: "batch" });
            batch.updateMetadata({ [`k${draw(3)}`]: number });
          }).then(() => appended.add(`b${number}`));
      }
    };
    for (let number = 0; number < ROUNDS; number++) {
      const chat = chats[draw(3)];
      settled.push(act(chat, number).catch((error) => {
        if (error.code === "conflict") return draw(2) ? error.conflict.takeTheirs() : error.conflict.applyMineAgain().then(() => appended.add(`b${number}`), (again) => again.conflict?.takeTheirs());
        // Others were faster: the message is gone, or its swipes are.
        if (!/^(message-unknown|swipe-unknown|swipe-illegal|patch-failed)$/.test(error.code)) throw error;
        return undefined;
      }));
      if (draw(6) === 0) await new Promise((resolve) => setTimeout(resolve, draw(12)));
      if (draw(15) === 0) [...sockets][draw(sockets.size || 1)]?.terminate();
      if (draw(5) === 0) for (const one of clients) one.reconnect();
    }
    const hurry = setInterval(() => clients.forEach((one) => one.reconnect()), 50);
    await Promise.all(settled);
    clearInterval(hurry);
    await Promise.all(chats.map((chat) => chat.saved()));
    const fresh = await client(server);
    const truth = await fresh.open(at);
    for (const chat of chats) {
      await until(() => chat.head.integrity === truth.head.integrity && chat.status === "synced", "the same head");
      assert.deepEqual(chat.messages, truth.messages);
      assert.deepEqual(chat.metadata, truth.metadata);
      assert.deepEqual(await chat.state("count").get(), await truth.state("count").get());
    }
    assert.equal((await truth.state("count").get())?.n ?? 0, counted);
    const ids = truth.messages.map(({ id }) => id);
    assert.equal(new Set(ids).size, ids.length);
    assert.ok(ids.every((id) => appended.has(id)));
    for (const id of appended) if (id.startsWith("m") && !unwanted.has(id)) assert.ok(ids.includes(id), `${id} is lost`);
    await Promise.all([fresh, ...clients].map((one) => one.close()));
  });
}
