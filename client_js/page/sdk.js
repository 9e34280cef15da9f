/* The SDK with all that gives its clients and chats further verbs. */

import "../src/catalog.js";
import "../src/generation.js";
import "../src/history.js";
import "../src/life.js";
import "../src/states.js";
import "../src/swipes.js";

export { applyPatch, connect, difference } from "../src/index.js";
