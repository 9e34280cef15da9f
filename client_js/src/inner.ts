/* What the modules beside the SDK share with it: one copy of each, so that both mean the same. */

import { errorOf, refused } from "./errors.js";
import { following } from "./follower.js";
import { ownerNamed } from "./ids.js";
import { append, batch, live, remove, requestOf, sameFor, Unfetched, updated } from "./intents.js";
import { mixin } from "./mixin.js";
import { beside, operationsOf } from "./replica.js";
import { equal, freeze, isObject, payload } from "./values.js";

export const inner = {
  append, batch, beside, equal, errorOf, following, freeze, isObject, live, mixin, operationsOf, ownerNamed, payload, refused, remove, requestOf, sameFor,
  Unfetched, updated,
};
