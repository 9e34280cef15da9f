/* What a save sends: a program that changes an array of messages and calls saveChat(), with the example extension under it.
   Counted are the bytes of this page's socket, both ways, beside the body that SillyTavern posts to /api/chats/save. */

import "@preact/signals"; // Draws a component again when a signal that it read changes.
import { signal } from "@preact/signals";
import { render } from "preact";
import { incrementalSave } from "../examples/incremental_save.js";
import { connect } from "../src/index.js";
import "../src/life.js"; // What puts a chat into the trash.
import { serverAddress } from "./address.js";
import { bytes, number } from "./format.js";
import { html } from "./html.js";
import { TappedSocket, wire } from "./tap.js";
import { ThemeSwitch } from "./theme.js";

const MESSAGES = 3000;
const WORDS = "the lamp on platform nine has a name for every train that never came and reads them out at night in order of regret".split(" ");

const state = signal("connecting");
const problem = signal("");
const rows = signal([]);
let client;
let store;

/** As SillyTavern writes them; some 500 bytes each. */
function message(number) {
  const isUser = number % 2 === 1;
  const text = Array.from({ length: 60 }, (_, at) => WORDS[(number * 7 + at * (1 + (number % 5))) % WORDS.length]).join(" ");
  const common = { name: isUser ? "You" : "Odile", is_user: isUser, is_system: false, send_date: new Date(1_795_000_000_000 + number * 60_000).toISOString(), mes: text, extra: {} };
  return isUser ? common : { ...common, swipe_id: 0, swipes: [text], swipe_info: [{ extra: {} }] };
}

/** The body of the request that SillyTavern makes for every save. */
function wholeSave() {
  const header = { user_name: "You", character_name: "Odile", chat_metadata: store.metadata };
  return new TextEncoder().encode(JSON.stringify({ ch_name: "Odile", file_name: "savings", avatar_url: "Odile.png", force: false, chat: [header, ...store.chat] })).length;
}

/** Do what the server may refuse: what it says is shown, and the page goes on with what is there. */
async function attempt(doing, act) {
  state.value = doing;
  problem.value = "";
  try {
    await act();
  } catch (error) {
    problem.value = error.reason ?? String(error);
    // Somebody else put the chat into the trash.
    if (/^(deleted|not-found)$/.test(error.code)) store = undefined;
  }
  state.value = client.error ? `stopped: ${client.error.reason}` : store ? "ready" : "connected";
}

const measured = (what, change) => attempt("saving", async () => {
  change();
  const before = wire.sent + wire.received;
  await store.save();
  const moved = wire.sent + wire.received - before;
  const whole = wholeSave();
  rows.value = [...rows.value, { what, moved, whole, times: Math.floor(whole / moved) }];
});

const begin = () => attempt("making", async () => {
  const made = await incrementalSave(client, `group:What a save sends ${new Date().toISOString().replace(/[:.]/g, "-")}`);
  made.chat.push(...Array.from({ length: MESSAGES }, (_, at) => message(at)));
  await made.save();
  store = made;
});

const leave = () => attempt("saving", async () => {
  await store.live.remove();
  store = undefined;
});

const VERBS = {
  "Edit one message": () => (store.chat[MESSAGES / 2].mes += " (edited)"),
  "Write one message": () => store.chat.push(message(store.chat.length)),
  "Delete one message": () => store.chat.splice(store.chat.length - 2, 1),
  "Change the metadata": () => (store.metadata.note_prompt = `Written ${new Date().toISOString()}`),
  "Save without a change": () => {},
};

function App() {
  const isReady = state.value === "ready";
  return html`<main class="savings">
    <p class="tools"><a href="/">tellback</a><${ThemeSwitch}/></p>
    <h1>What a save sends</h1>
    <p>Code that changes a chat in place and then saves the whole chat goes on as it is. With <code>examples/incremental_save.js</code> under it, what travels is what changed, and <code>saveChat()</code> comes back when that is on the server's disk.</p>
    ${!store && html`<p><button class="main" disabled=${state.value !== "connected"} onClick=${begin}>Make a chat of ${number(MESSAGES)} messages</button> It is a chat of its own, and can be put into the trash afterwards.</p>`}
    <p role="status" data-test="state">${{ connecting: "Connecting …", connected: "", making: "Writing the messages …", saving: "Saving …", ready: `The chat has ${number(store?.chat.length ?? 0)} messages.` }[state.value] ?? state.value}</p>
    ${problem.value && html`<p role="alert" class="wrong">${problem.value}</p>`}
    ${store && html`<p class="verbs">${Object.entries(VERBS).map(([what, change]) => html`<button key=${what} disabled=${!isReady} onClick=${() => measured(what, change)}>${what}</button>`)}</p>`}
    ${rows.value.length > 0 && html`<table class="figures"><caption>Bytes on the wire, both ways together</caption><thead><tr><th scope="col">What</th><th scope="col">Here</th><th scope="col">A full save</th><th scope="col">Times fewer</th></tr></thead>
      <tbody>${rows.value.map(({ what, moved, whole, times }, index) => html`<tr key=${index}><th scope="row">${what}</th><td>${bytes(moved)}</td><td>${bytes(whole)}</td><td>${moved ? number(times) : "all"}</td></tr>`)}</tbody></table>`}
    ${store && html`<p><button disabled=${!isReady} onClick=${leave}>Put the chat into the trash</button></p>`}
  </main>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App}/>`, root);
const token = sessionStorage.getItem("tellback token");
try {
  client = await connect(serverAddress(), { connectTimeoutMs: 0, outbox: null, WebSocket: TappedSocket, ...(token ? { token } : {}) });
  await client.connected();
  state.value = "connected";
} catch (error) {
  state.value = `stopped: ${error.reason ?? error}`;
}
