/* The commits of the shown chat, the chat as it was at one of them, and what is different. */

import { useState } from "preact/hooks";
import { NoChat, useRead } from "./console_parts.js";
import { html } from "./html.js";
import { difference } from "./sdk.js";
import { chat, client, turn } from "./store.js";

const PAGE = 100;
const SHOWN_MAX = 30;
const WHOLE_MAX = 200;

function said(effect) {
  switch (effect.op) {
    case "append": return `+ ${effect.messages.map((one) => `${one.name ?? ""}: ${String(one.mes ?? "").slice(0, 60)}`).join(" · ")}`;
    case "insert": return `+ ${effect.messages.length} between`;
    case "patch": return `changed ${effect.patch.map((one) => one.path).join(", ")}`;
    case "delete": return `− ${effect.messages.length} ${effect.messages.length === 1 ? "message" : "messages"}`;
    case "state": case "floor": return `state ${effect.namespace}`;
    default: return effect.op;
  }
}

/** The last `count` commits; pages may be shorter than was asked for. */
async function commitsOf(one, seq, count) {
  const found = [];
  for (let after = Math.max(0, seq - count); ; after = found.at(-1).version.seq) {
    const page = await one.history(after, PAGE);
    found.push(...page.commits);
    if (!page.more || !page.commits.length) return found;
  }
}

export function History() {
  turn.value;
  const one = chat.value;
  const seq = one?.head.seq;
  const [at, setAt] = useState(null);
  const [count, setCount] = useState(PAGE);
  const commits = useRead(async () => (one ? commitsOf(one, seq, count) : null), [one, seq, count]);
  if (!one) return html`<${NoChat}/>`;
  if (!commits) return html`<p class="hint">Reading …</p>`;
  return html`${at !== null && html`<${Then} key=${at} one=${one} at=${at} close=${() => setAt(null)}/>`}
    ${!commits.length && html`<p class="hint">Nothing has changed since the server knows this chat.</p>`}
    <ol class="commits" reversed>${commits.toReversed().map((commit) => html`<li key=${commit.version.seq}><button class="plain row" aria-pressed=${at === commit.version.seq} onClick=${() => setAt(commit.version.seq)}>
      <b>${commit.version.seq}</b> ${(commit.ops ?? []).map(said).join("; ")}${commit.by?.session === client.session && html` <small>this tab</small>`}</button></li>`)}</ol>
    ${seq > count && html`<p><button onClick=${() => setCount(count + PAGE)}>Older</button></p>`}`;
}

function Then({ one, at, close }) {
  const [isSince, setSince] = useState(true);
  const then = useRead(() => one.at(at), [at]);
  // What was before the first commit that is kept cannot be asked for.
  const before = useRead(async () => ({ chat: at > 0 ? await one.at(at - 1).catch(() => null) : null }), [at]);
  if (!then || !before) return null;
  const [old, now] = isSince || !before.chat ? [then, one] : [before.chat, then];
  return html`<section class="then" aria-label=${`The chat as it was at ${at}`}><h2>At ${at}: ${then.messages.length} messages <button class="plain" onClick=${close}>Close</button></h2>
    ${before.chat && html`<p class="choice"><button aria-pressed=${isSince} onClick=${() => setSince(true)}>Since then</button><button aria-pressed=${!isSince} onClick=${() => setSince(false)}>This commit</button></p>`}
    <${Changes} old=${old} now=${now}/>
    <details><summary>The chat as it was</summary>${then.messages.slice(-WHOLE_MAX).map((message) => html`<p key=${message.id}><b>${message.name}</b> ${message.mes}</p>`)}
      ${then.messages.length > WHOLE_MAX && html`<p class="hint">Its last ${WHOLE_MAX} messages.</p>`}</details></section>`;
}

function Changes({ old, now }) {
  const before = new Map(old.messages.map((message) => [message.id, message]));
  const after = new Map(now.messages.map((message) => [message.id, message]));
  const rows = [];
  for (const [id, message] of before) {
    const other = after.get(id);
    if (!other) rows.push(html`<div class="change" key=${id}><del>${message.mes}</del></div>`);
    else if (other.mes !== message.mes) rows.push(html`<div class="change" key=${id}>${marked(String(message.mes ?? ""), String(other.mes ?? ""))}</div>`);
    else {
      const paths = other === message ? [] : difference(message, other).map(({ path }) => path);
      if (paths.length) rows.push(html`<div class="change" key=${id}>${message.name}: ${paths.join(", ")} changed</div>`);
    }
  }
  for (const [id, message] of after) if (!before.has(id)) rows.push(html`<div class="change" key=${id}><ins>${message.mes}</ins></div>`);
  const metadata = difference(old.metadata ?? {}, now.metadata ?? {});
  if (metadata.length) rows.push(html`<div class="change" key="metadata">Metadata: ${metadata.map(({ path }) => path).join(", ")} changed</div>`);
  return html`${!rows.length && html`<p>No difference.</p>`}${rows.slice(-SHOWN_MAX)}${rows.length > SHOWN_MAX && html`<p class="hint">And ${rows.length - SHOWN_MAX} before these.</p>`}`;
}

/** Both texts, with what is not in the other one marked: all between the words that they begin and end with. */
function marked(old, now) {
  const [one, other] = [old, now].map((text) => text.split(/(?<=\s)|(?=\s)/));
  let first = 0;
  while (first < Math.min(one.length, other.length) && one[first] === other[first]) first++;
  let last = 0;
  while (last < Math.min(one.length, other.length) - first && one.at(-1 - last) === other.at(-1 - last)) last++;
  const shown = (words) => html`${words.slice(0, first).join("")}<mark>${words.slice(first, words.length - last).join("")}</mark>${words.slice(words.length - last).join("")}`;
  return html`<del>${shown(one)}</del><ins>${shown(other)}</ins>`;
}
