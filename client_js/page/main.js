/* The page: the list of chats beside the chat that is shown. */

import "@preact/signals"; // Draws a component again when a signal that it read changes.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ConflictDialogue } from "./conflict.js";
import { Console } from "./console.js";
import { Conversation } from "./conversation.js";
import { html } from "./html.js";
import { Sidebar } from "./sidebar.js";
import { announced, chat, client, conflict, connection, dismiss, isConsoleOpen, leave, notices, opening, pending, signOut, start, trouble, turn } from "./store.js";
import { ThemeSwitch } from "./theme.js";

const WORDS = { connecting: "Connecting", offline: "Offline", closed: "Stopped", connected: "Live" };

function Badge() {
  const status = connection.value;
  const waits = pending.value;
  const word = WORDS[status] + (waits ? ` · ${waits} to save` : "");
  return html`<span class="badge ${status}" role="status" data-test="connection">${word}</span>`;
}

function Notices() {
  return html`<div class="notices" role="status" aria-label="Notices">
    ${notices.value.map(({ id, text, kind }) => html`<div key=${id} class="notice ${kind}"><span>${text}</span><button class="plain" aria-label="Dismiss" onClick=${() => dismiss(id)}>×</button></div>`)}
  </div>`;
}

function SignIn({ error }) {
  const [asked, setAsked] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setAsked(true);
    await start(new FormData(event.target).get("token"));
  };
  return html`<main class="sign-in"><h1>tellback</h1><p>This server asks who you are.</p>
    <form onSubmit=${submit}><label>Token<input name="token" type="password" required autocomplete="off" aria-describedby="sign-in-error"/></label><button class="main">Sign in</button></form>
    <p id="sign-in-error" class="wrong" role="alert">${asked && error && (error.code === "forbidden" ? "This token is known, and may not come in here." : "The server does not know this token, or it has expired.")}</p>
  </main>`;
}

function Stopped({ error }) {
  const why = error?.code === "session-taken-over" ? "This tab was continued elsewhere." : (error?.reason ?? String(error));
  return html`<main class="sign-in"><h1>This tab has stopped</h1><p>${why}</p><button class="main" onClick=${() => location.reload()}>Load again</button></main>`;
}

function App() {
  const error = trouble.value;
  turn.value;
  const shown = chat.value;
  useEffect(() => {
    document.title = shown ? `${shown.name.replace(/^.*?[:/]/, "")} · tellback` : "tellback";
  }, [shown]);
  if (error) return /^(unauthenticated|forbidden)$/.test(error.code) ? html`<${SignIn} error=${error}/>` : html`<${Stopped} error=${error}/>`;
  return html`<div class="app ${shown ? "showing" : ""} ${isConsoleOpen.value ? "with-console" : ""}">
    <header class="top"><a class="brand" href="#" onClick=${(event) => (event.preventDefault(), leave())}>tellback</a><${Badge}/>
      <span class="tools">${sessionStorage.getItem("tellback token") && html`<button class="plain" onClick=${signOut} title=${`Signed in as ${client?.user}`}>Sign out</button>`}<${ThemeSwitch}/></span></header>
    <${Sidebar}/>
    ${shown ? html`<${Conversation} key=${shown.chatId} chat=${shown}/>` : html`<main class="empty"><h1>${opening.value ? "Opening …" : "No chat is open"}</h1><p>Choose one from the list, or make one with +.</p></main>`}
    ${isConsoleOpen.value ? html`<${Console} close=${() => (isConsoleOpen.value = false)}/>` : html`<button class="open-console" aria-label="Open the console" title="Console" onClick=${() => (isConsoleOpen.value = true)}>☰</button>`}
    <${Notices}/>
    <div class="unseen" aria-live="polite">${announced.value}</div>
    ${conflict.value && html`<${ConflictDialogue} key=${`${conflict.value.handle.name} ${conflict.value.op}`} conflict=${conflict.value}/>`}
  </div>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App}/>`, root);
void start();
