// What a program in TypeScript writes: checked against the types in dist, never run.
import { connect, type Chat } from "tellback";
import "tellback/catalog";
import { createContext } from "tellback/context";
import "tellback/floors";
import "tellback/generations";
import "tellback/history";
import "tellback/life";
import { MemoryOutbox } from "tellback/memory";
import { chatAddress } from "tellback/names";
import "tellback/states";
import "tellback/swipes";

const client = await connect("ws://127.0.0.1:8765/ws", { outbox: new MemoryOutbox() });
const chat: Chat = await client.open("group:Usage");
const { messageIds: [first] } = await chat.append({ mes: "hi" });
const reply = await chat.generate();
for await (const piece of reply) reply.push(piece.toUpperCase());
await chat.state("memory").update((state) => ({ ...state, seen: first }));
await chat.swipeAdd(first!, "another");
await chat.floorState("score").patch([]);
const { commits = [] } = await chat.history();
await chat.rename(`After ${commits.length}`);
await chat.branch(first!);
await chat.batch((batch) => {
  batch.append({ mes: "all or nothing" });
  batch.state("memory").merge({ n: 1 });
  batch.swipeSelect(first!, 0);
  batch.floorState("score").update(() => ({}));
});
for await (const one of client.listChats()) chatAddress(one.chat)?.kind;
client.on("conflicted", ({ conflict }) => conflict.takeTheirs());
chat.on("behind", ({ from }) => from.seq);
const context = await createContext(client, { chat: chat.name });
await context.addMessages({ mes: "hi" });
await context.swipe.left();
context.eventSource.on("message_sent", (index: number) => index);
// @ts-expect-error What has a short name in dist is not there for others.
chat.subscription;
