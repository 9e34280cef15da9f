/* Characters, groups and their chats, with a filter; a new chat is made beside its owner. */

import { useState } from "preact/hooks";
import { html } from "./html.js";
import { chat, chatTitle, go, listing, makeChat, opening } from "./store.js";

const when = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

export function Sidebar() {
  const [filter, setFilter] = useState("");
  const { characters, groups, chats, isLoaded } = listing.value;
  const wanted = filter.trim().toLowerCase();
  const matches = (one) => !wanted || `${one.chat} ${one.preview}`.toLowerCase().includes(wanted);
  const owners = [
    ...characters.map((one) => ({ key: `character ${one.character}`, title: one.name || one.character, owner: { character: one.character }, chats: chats.filter((each) => each.character === one.character) })),
    ...groups.map((one) => ({ key: `group ${one.id}`, title: one.name ?? one.id, isGroup: true, owner: { group: one.id }, chats: chats.filter((each) => each.group === one.id) })),
  ];
  const known = new Set(owners.flatMap((one) => one.chats));
  const others = chats.filter((one) => !known.has(one));
  if (others.length) owners.push({ key: "others", title: "Other chats", chats: others });
  const shown = owners.map((one) => ({ ...one, chats: one.chats.filter(matches) })).filter((one) => one.chats.length || !wanted);
  return html`<nav class="side" aria-label="Chats">
    <input type="search" class="filter" placeholder="Find a chat" aria-label="Find a chat" value=${filter} onInput=${(event) => setFilter(event.target.value)}/>
    ${!isLoaded && html`<p class="hint">Reading the list …</p>`}
    ${isLoaded && !owners.length && html`<p class="hint">There are no chats here yet.</p>`}
    ${isLoaded && owners.length > 0 && !shown.length && html`<p class="hint">No chat matches.</p>`}
    ${shown.map((one) => html`<${Owner} key=${one.key} ...${one}/>`)}
    <p class="hint"><a href="/savings">What a save sends</a>: bytes of an edit beside those of a full save.</p>
  </nav>`;
}

function Owner({ title, owner, isGroup, chats }) {
  const [isMaking, setMaking] = useState(false);
  const make = async (event) => {
    event.preventDefault();
    const name = new FormData(event.target).get("name").trim();
    if (name && (await makeChat(owner, name))) setMaking(false);
  };
  return html`<section aria-label=${title}>
    <h2><span>${title}${isGroup && html` <small>group</small>`}</span>
      ${owner && html`<button class="plain" aria-label=${`New chat with ${title}`} title="New chat" aria-expanded=${isMaking} onClick=${() => setMaking(!isMaking)}>+</button>`}</h2>
    ${isMaking && html`<form class="make" onSubmit=${make}><input name="name" aria-label="Name of the new chat" placeholder="Name" required maxlength="120" ref=${(input) => input?.focus()}/><button class="main">Make</button></form>`}
    <ul>${chats.map((one) => html`<${Entry} key=${one.chat_id ?? one.chat} one=${one}/>`)}</ul>
  </section>`;
}

function Entry({ one }) {
  const isShown = chat.value?.chatId === one.chat_id || opening.value === one.chat;
  return html`<li><a href=${`#${encodeURIComponent(one.chat)}`} aria-current=${isShown ? "page" : undefined} onClick=${(event) => (event.preventDefault(), go(one.chat))}>
    <span class="name">${chatTitle(one.chat)}${one.damaged && html` <b class="damaged" title="Lines of its file cannot be read">damaged</b>`}</span>
    <span class="preview">${one.preview}</span>
    <span class="facts">${one.count} · ${when.format(one.changed_ms)}</span></a></li>`;
}
