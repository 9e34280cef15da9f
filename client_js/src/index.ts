/** Live chats: a replica that is kept equal, and writes that resolve when they are durable. */
export { Batch, Chat } from "./chat.js";
export { Client, connect, type ConnectOptions } from "./client.js";
export { Conflict } from "./conflict.js";
export { TellbackError } from "./errors.js";
export type { ChatEvents, ClientEvents, ConnectionStatus, Status } from "./events.js";
export type * as frames from "./frames.js";
export { Handle } from "./handle.js";
export { newMessageId } from "./ids.js";
/** @internal */
export { inner } from "./inner.js";
export { IndexedDbOutbox, type Entry, type Outbox, type WriteResult } from "./outbox.js";
export { applyPatch, difference, mergeToPatch, type Operation } from "./patch.js";
export type { Message } from "./replica.js";
export type { Json } from "./values.js";
