/* One message: its text or its editor, its swipes, and whether it is saved. */

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { dateTime } from "./format.js";
import { html } from "./html.js";
import { addSwipe, branch, connection, editText, removeMessage, stop, swipeBy } from "./store.js";
import { textOf } from "./text.js";

function time(message) {
  const at = new Date(message.send_date ?? NaN);
  return Number.isNaN(at.getTime()) ? null : html`<time dateTime=${at.toISOString()}>${dateTime.format(at)}</time>`;
}

export function Message({ chat, message, isSaved, index, count, generation, isReadOnly, isEditing, edit }) {
  const [isAdding, setAdding] = useState(false);
  const name = message.name ?? "";
  const swipes = message.swipes?.length ?? 0;
  const at = message.swipe_id ?? 0;
  const kind = message.is_system ? "system" : message.is_user ? "user" : "other";
  const body = generation ? html`<${Growing} generation=${generation} before=${generation.target.kind === "continue" ? message.mes : ""}/>`
    : isEditing ? html`<${Editor} text=${message.mes ?? ""} label=${`Edit the message of ${name}`} done=${(text) => (edit(null), text !== undefined && text !== message.mes && void editText(chat, message.id, text))}/>`
    : html`<div class="text">${textOf(message.mes)}</div>`;
  return html`<article class="message ${kind} ${isSaved ? "" : "unsaved"}" data-id=${message.id} aria-label=${name} aria-posinset=${index + 1} aria-setsize=${count}>
    <header><span class="who">${name}</span>${time(message)}<span class="mark" title=${isSaved ? "On the server's disk" : "Not on the server's disk yet"}>${isSaved ? "saved" : connection.value === "connected" ? "saving …" : "kept here"}</span></header>
    ${body}
    ${isAdding && html`<${Editor} text="" label="One more swipe" done=${(text) => (setAdding(false), text && void addSwipe(chat, message.id, text))}/>`}
    ${!isReadOnly && !isEditing && html`<footer>
      ${!message.is_user && html`<span class="swipes" role="group" aria-label="Swipes">
        <button class="plain" aria-label="Swipe before" disabled=${at <= 0} onClick=${() => swipeBy(chat, message, -1)}>‹</button>
        <span aria-label=${`Swipe ${at + 1} of ${Math.max(swipes, 1)}`} role="img">${at + 1}/${Math.max(swipes, 1)}</span>
        <button class="plain" aria-label="Next swipe" disabled=${at + 1 >= swipes} onClick=${() => swipeBy(chat, message, 1)}>›</button>
        <button class="plain" aria-label="Add a swipe" title="Add a swipe" onClick=${() => setAdding(true)}>+</button></span>`}
      <button class="plain" onClick=${() => edit(message.id)}>Edit</button>
      <button class="plain" onClick=${() => branch(chat, message.id)}>Branch</button>
      <button class="plain" onClick=${() => removeMessage(chat, message.id)}>Delete</button>
    </footer>`}
  </article>`;
}

/** What was changed elsewhere while one writes is shown, and saving over it is said to be that. */
function Editor({ text, label, done }) {
  const [began] = useState(text);
  const [mine, setMine] = useState(text);
  const area = useRef(null);
  // Before the browser takes the next key: the caret must not jump under somebody's typing.
  useLayoutEffect(() => {
    area.current.focus();
    area.current.setSelectionRange(mine.length, mine.length);
  }, []);
  const isStale = text !== began;
  const keys = (event) => {
    event.stopPropagation();
    if (event.key === "Escape") done();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done(mine);
  };
  return html`<div class="editor">
    <textarea ref=${area} rows=${Math.min(14, Math.max(3, mine.split("\n").length + 1))} aria-label=${label} value=${mine} onInput=${(event) => setMine(event.target.value)} onKeyDown=${keys}></textarea>
    ${isStale && html`<div class="stale" role="alert"><b>Changed by somebody meanwhile:</b><div class="text">${text}</div></div>`}
    <div class="actions"><button onClick=${() => done()}>${isStale ? "Take theirs" : "Cancel"}</button><button class="main" disabled=${!mine} onClick=${() => done(mine)}>${isStale ? "Put mine over it" : "Save"}</button></div>
  </div>`;
}

function Growing({ generation, before = "" }) {
  return html`<div class="text growing" aria-busy="true">${textOf(before + generation.text) || null}<span class="cursor" aria-hidden="true"></span></div>`;
}

/** A reply that is being written and is no message yet. */
export function LiveReply({ generation }) {
  return html`<article class="message other live" aria-label="A reply is being written">
    <header><span class="who">A reply is being written</span></header>
    <${Growing} generation=${generation}/>
    <footer><button class="plain" onClick=${() => stop(generation)}>Stop</button></footer></article>`;
}
