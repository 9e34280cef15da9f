/* Beside the chat: how the server is, who is there, and of the shown chat its history, its backups and its states; and the trash. */

import { useState } from "preact/hooks";
import { html } from "./html.js";
import { chat } from "./store.js";
import { Frames } from "./view_frames.js";
import { History } from "./view_history.js";
import { Backups, Trash } from "./view_kept.js";
import { Live } from "./view_live.js";
import { Server } from "./view_server.js";
import { States } from "./view_states.js";

const VIEWS = { Server, Live, History, Frames, Backups, States, Trash };
const OF_CHAT = /^(History|Backups|States)$/;

export function Console({ close }) {
  const [view, setView] = useState("Server");
  const View = VIEWS[view];
  const keys = (event) => event.key === "Escape" && close();
  const names = Object.keys(VIEWS);
  const walk = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const name = names[(names.indexOf(view) + by + names.length) % names.length];
    setView(name);
    document.getElementById(`tab-${name}`).focus();
  };
  return html`<aside class="console" aria-label="Console" onKeyDown=${keys}>
    <div class="views"><div role="tablist" aria-label="Console" onKeyDown=${walk}>${names.map((name) => html`<button role="tab" key=${name} class="plain" id=${`tab-${name}`} aria-controls="view" aria-selected=${name === view} tabindex=${name === view ? 0 : -1} onClick=${() => setView(name)}>${name}</button>`)}</div>
      <button class="plain" aria-label="Close the console" onClick=${close}>×</button></div>
    <div class="view" id="view" role="tabpanel" aria-labelledby=${`tab-${view}`} tabindex="0"><${View} key=${OF_CHAT.test(view) ? `${view} ${chat.value?.chatId}` : view}/></div></aside>`;
}
