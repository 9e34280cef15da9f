/** Live chats: a replica that is kept equal, and writes that resolve when they are durable. */
export { Batch, Chat } from "./chat.js";
export { Client, connect, type ConnectOptions } from "./client.js";
export { Conflict } from "./conflict.js";
export { TellbackError } from "./errors.js";
export type { ChatEvents, ConnectionEvents, ConnectionStatus, Status } from "./events.js";
export { FloorState } from "./floors.js";
export type * as frames from "./frames.js";
export { Generation, Producing, type GenerateOptions } from "./generation.js";
export type { GenerationResult } from "./generations.js";
export { Handle, State } from "./handle.js";
export { newMessageId } from "./ids.js";
export { IndexedDbOutbox, MemoryOutbox, type Entry, type Outbox, type WriteResult } from "./outbox.js";
export { applyPatch, difference, mergeToPatch, type Operation } from "./patch.js";
export type { Message } from "./replica.js";
export type { Json } from "./values.js";
/** @internal */
export * as inner from "./inner.js";
