/* A write that somebody else was faster than: both texts, and the three exits. Nothing is decided by leaving it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { html } from "./html.js";
import { chatTitle, go, relist, tell, write } from "./store.js";

const SHOWN_MAX = 5;
const NONE = [];

/** Messages that the own side has otherwise than the chat has now. */
function differences(conflict) {
  const now = new Map((conflict.handle.messages ?? NONE).map((message) => [message.id, message]));
  const mine = conflict.mine.messages;
  const out = [];
  for (const [id, message] of mine) {
    const other = now.get(id);
    if (!other || other.mes !== message.mes || (other.swipe_id ?? 0) !== (message.swipe_id ?? 0)) out.push({ id, mine: message, theirs: other });
  }
  for (const [id, message] of now) if (!mine.has(id)) out.push({ id, mine: undefined, theirs: message });
  return out;
}

export function ConflictDialogue({ conflict }) {
  const dialogue = useRef(null);
  const [isBusy, setBusy] = useState(false);
  const name = conflict.handle.name;
  const [copy, setCopy] = useState(`${chatTitle(name)} - mine`);
  useEffect(() => {
    dialogue.current.showModal();
    dialogue.current.querySelector("button").focus();
  }, []);
  const all = differences(conflict);
  const busy = async (act) => {
    setBusy(true);
    await act();
    setBusy(false);
  };
  const saveAs = (event) => {
    event.preventDefault();
    void busy(async () => {
      const address = name.startsWith("group:") ? `group:${copy}` : name.replace(/^(character:[^/]*\/).*$/, `$1${copy}`);
      const made = await write(conflict.saveMineAs(address));
      if (!made) return;
      tell(`Yours is in ${chatTitle(address)}.`);
      await relist();
      go(address);
    });
  };
  return html`<dialog ref=${dialogue} class="conflict" aria-labelledby="conflict-title" onCancel=${(event) => event.preventDefault()}>
    <h2 id="conflict-title">Somebody was faster</h2>
    <p>Your change to <b>${chatTitle(name)}</b> was made on a text that has changed meanwhile. Both are kept until you choose.</p>
    <div class="sides">${all.slice(0, SHOWN_MAX).map(({ id, mine, theirs }) => html`<div class="side-by-side" key=${id}>
      <div><h3>Theirs, now in the chat</h3><div class="text">${theirs ? theirs.mes : html`<i>deleted</i>`}</div></div>
      <div class="mine"><h3>Yours</h3><div class="text">${mine ? mine.mes : html`<i>deleted</i>`}</div></div></div>`)}
      ${!all.length && html`<p>No message is different: ${conflict.reason}</p>`}
      ${all.length > SHOWN_MAX && html`<p>And ${all.length - SHOWN_MAX} more.</p>`}</div>
    <div class="exits">
      <button disabled=${isBusy} onClick=${() => write(Promise.resolve(conflict.takeTheirs()))}>Take theirs</button>
      <button class="main" disabled=${isBusy} onClick=${() => busy(() => write(conflict.applyMineAgain()))}>Put mine over it</button>
      <form onSubmit=${saveAs}><label>Or keep mine as a chat of its own<input value=${copy} required maxlength="120" onInput=${(event) => setCopy(event.target.value)}/></label><button disabled=${isBusy}>Keep as new chat</button></form>
    </div></dialog>`;
}
