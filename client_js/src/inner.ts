/* What the modules beside the SDK share with it: one copy of each, so that both mean the same. */

import { errorOf, refused } from "./errors.js";
import { following } from "./follower.js";
import { newSession } from "./ids.js";
import { append, batch, live, remove, state, swipe, Unfetched } from "./intents.js";
import { mixin } from "./mixin.js";
import { tokensOf } from "./patch.js";
import { copy, equal, has, isObject, payload } from "./values.js";

export const inner = {
  append, batch, copy, equal, errorOf, following, has, isObject, live, mixin, newSession, payload, refused, remove, state, swipe, tokensOf, Unfetched,
};
