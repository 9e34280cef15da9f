/* The state documents of the shown chat, and of floor states the value that any message and swipe makes. */

import { useState } from "preact/hooks";
import { NoChat, useRead } from "./console_parts.js";
import { html } from "./html.js";
import { applyPatch } from "./sdk.js";
import { chat, turn } from "./store.js";

const LOG = "__floor_log";
const json = (value) => JSON.stringify(value, (_key, inner) => (typeof inner === "bigint" ? String(inner) : inner), 2);

export function States() {
  turn.value;
  const one = chat.value;
  const found = useRead(async () => (one ? one.states() : null), [one, one?.head.seq]);
  if (!one) return html`<${NoChat}/>`;
  const names = Object.keys(found ?? {}).sort();
  return html`${found && !names.length && html`<p class="hint">No extension has kept a state in this chat.</p>`}
    ${names.map((name) => {
      const log = found[`${name}${LOG}`];
      return html`<details key=${name}><summary>${name}${log && html` <small>floor state</small>`}</summary>
        ${Array.isArray(log?.commits) && html`<${Floors} commits=${log.commits} messages=${one.messages} label=${name}/>`}<pre tabindex="0">${json(found[name])}</pre></details>`;
    })}`;
}

/** A commit belongs to a message by its id; one that has none yet, by the index. The base belongs to none. */
function placed(commits, messages) {
  const index = new Map(messages.map((message, at) => [message.id, at]));
  return commits.map((commit) => ({ ...commit, isBase: commit.tellback?.base === true, at: commit.tellback?.message === undefined ? commit.floor : index.get(commit.tellback.message) }));
}

/** The state as `floor` and its swipe make it: what is above counts as it is shown. One that does not fit is skipped whole. */
export function stateAt(commits, messages, floor, swipe) {
  let value = {};
  for (const { isBase, at, swipeId, patches } of commits) {
    const shown = at === floor ? swipe : (messages[at]?.swipe_id ?? 0);
    if (!isBase && !(at <= floor && swipeId === shown)) continue;
    try {
      value = applyPatch(value, patches);
    } catch {
      continue;
    }
  }
  return value;
}

function Floors({ commits, messages, label }) {
  const [floor, setFloor] = useState(messages.length - 1);
  const at = Math.min(floor, messages.length - 1);
  const message = messages[at];
  const [swiped, setSwipe] = useState(null);
  const swipe = swiped ?? message?.swipe_id ?? 0;
  if (!message) return null;
  const all = placed(commits, messages);
  const own = all.filter((commit) => commit.at === at && !commit.isBase);
  const here = own.filter(({ swipeId }) => swipeId === swipe);
  const swipes = [...new Set([...(message.swipes ?? [null]).keys(), ...own.map(({ swipeId }) => swipeId)])].sort((one, other) => one - other);
  const go = (to) => {
    setFloor(to);
    setSwipe(null);
  };
  return html`<div class="floors" role="group" aria-label=${`Floors of ${label}`}>
    <label>Floor<input type="number" min="0" max=${messages.length - 1} value=${at} onInput=${(event) => event.target.value !== "" && go(Math.max(0, Number(event.target.value)))}/></label>
    <label>Swipe<select value=${swipe} onChange=${(event) => setSwipe(Number(event.target.value))}>${swipes.map((one) => html`<option key=${one} value=${one} selected=${one === swipe}>${one + 1}${one === (message.swipe_id ?? 0) ? " (shown)" : ""}</option>`)}</select></label>
    <small>${message.name}: ${String((message.swipes ?? [])[swipe] ?? message.mes ?? "").slice(0, 80)}</small></div>
    <h2>There it is</h2><pre tabindex="0" data-test="floor-value">${json(stateAt(all, messages, at, swipe))}</pre>
    <h2>Commits of this floor and swipe: ${here.length}</h2>
    ${here.map(({ patches }, index) => html`<pre tabindex="0" key=${index}>${json(patches)}</pre>`)}
    <h2>Now</h2>`;
}
