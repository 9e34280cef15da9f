/* What the extension API beside the SDK shares with it: one copy of each class, so that both mean the same. */
export { refused } from "./errors.js";
export * as intents from "./intents.js";
export { copy, equal, has, isObject, payload } from "./values.js";
