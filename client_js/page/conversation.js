/* The chat that is shown: its messages, live replies, and the line to write. */

import { useRef, useState } from "preact/hooks";
import { DamageBanner } from "./damage.js";
import { html } from "./html.js";
import { LiveReply, Message } from "./message.js";
import { chatOwner, chatTitle, client, connection, generate, leave, running, say, sent, stop, swipeBy, turn } from "./store.js";
import { Virtual } from "./virtual.js";

const LINES_MAX = 8;

export function Conversation({ chat }) {
  turn.value;
  const [editing, setEditing] = useState(null);
  const live = running(chat);
  const swiped = new Map(live.filter((one) => one.target.kind !== "message").map((one) => [one.target.message, one]));
  const items = [...chat.messages, ...live.filter((one) => one.target.kind === "message")];
  const isReadOnly = chat.status === "read-only";
  const last = chat.messages.at(-1);
  const keys = (event) => {
    if (event.altKey && last && (event.key === "ArrowLeft" || event.key === "ArrowRight") && !isReadOnly) {
      event.preventDefault();
      void swipeBy(chat, last, event.key === "ArrowLeft" ? -1 : 1);
    }
  };
  const row = (item, index) => (item.target ? html`<${LiveReply} generation=${item}/>` : html`<${Message} chat=${chat} message=${item} isSaved=${chat.isSaved(item.id)} index=${index} count=${items.length}
    generation=${swiped.get(item.id)} isReadOnly=${isReadOnly} isEditing=${editing === item.id} edit=${setEditing}/>`);
  return html`<main class="conversation" onKeyDown=${keys}>
    <div class="head"><a class="back" href="#" aria-label="Back to the list" onClick=${(event) => (event.preventDefault(), leave())}>‹</a>
      <h1>${chatTitle(chat.name)}<small>${chatOwner(chat.name) ?? "group"}</small></h1>
      <span class="saved" role="status" data-test="saved">${savedWord(chat)}</span></div>
    ${isReadOnly && html`<${DamageBanner} chat=${chat}/>`}
    <${Virtual} items=${items} keyOf=${(item) => item.id} row=${row} label="Messages" follow=${sent.value}/>
    <${Composer} chat=${chat} isReadOnly=${isReadOnly} live=${live} editLast=${() => {
      const own = chat.messages.findLast((message) => message.is_user);
      if (own) setEditing(own.id);
    }}/>
  </main>`;
}

function savedWord(chat) {
  if (chat.conflicts.length) return "Needs a decision";
  if (connection.value !== "connected") return chat.pending ? `${chat.pending} kept here until the server is back` : "Not connected";
  return chat.pending ? "Saving …" : "All saved";
}

function Composer({ chat, isReadOnly, live, editLast }) {
  const [text, setText] = useState("");
  const input = useRef(null);
  const send = (event) => {
    event?.preventDefault();
    if (!text.trim()) return;
    void say(chat, text);
    setText("");
    input.current.focus();
  };
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    else if (event.key === "ArrowUp" && !text) {
      event.preventDefault();
      editLast();
    }
  };
  const canReply = !isReadOnly && connection.value === "connected";
  return html`<form class="composer" onSubmit=${send}>
    <textarea ref=${input} rows=${Math.min(LINES_MAX, text.split("\n").length)} placeholder="Write a message" aria-label="Write a message" aria-describedby="keys" value=${text} disabled=${isReadOnly}
      onInput=${(event) => setText(event.target.value)} onKeyDown=${keys}></textarea>
    ${live.length
      ? html`<button type="button" onClick=${() => live.forEach(stop)}>Stop</button>`
      : html`<button type="button" disabled=${!canReply} title=${client.upstreams.length ? `Ask ${client.upstreams[0].name}` : "No model server is configured: this tab writes a sample reply"} onClick=${() => generate(chat)}>${client.upstreams.length ? "Reply" : html`Sample<span class="wide"> reply</span>`}</button>`}
    <button class="main" disabled=${isReadOnly || !text.trim()}>Send</button>
    <p id="keys">Enter sends · Shift+Enter: new line · ↑ edits your last message · Alt+← → swipes the last one</p>
  </form>`;
}
