/* What is kept beside the chats: the backups of the shown one, and the trash. */

import { useState } from "preact/hooks";
import { NoChat, Twice, useRead } from "./console_parts.js";
import { bytes, dateTime } from "./format.js";
import { html } from "./html.js";
import { all, chat, chatTitle, client, go, relist, restoreFrom, tell, write } from "./store.js";

export function Backups() {
  const one = chat.value;
  const [look, again] = useState(0);
  const found = useRead(async () => (one ? one.backups() : null), [one, look]);
  if (!one) return html`<${NoChat}/>`;
  const backUp = async () => {
    if (await write(one.backUp())) tell("Backed up.");
    again(look + 1);
  };
  const beside = async (backup) => {
    const to = one.name.replace(/[^/:]*$/, (name) => `${name} - ${backup.slice(0, 10)}`);
    if (!(await write(one.restoreBackup(backup, { to })))) return;
    await relist();
    go(to);
  };
  return html`<p><button onClick=${backUp}>Back up now</button></p>
    ${found && !found.backups?.length && html`<p class="hint">There is no backup of this chat yet.</p>`}
    <ul class="rows">${(found?.backups ?? []).map(({ backup, taken_ms, reason, count, size_bytes }) => html`<li key=${backup}><span>${dateTime.format(taken_ms)}<small>${reason} · ${count ?? "?"} messages · ${bytes(size_bytes)}</small></span>
      <button onClick=${() => beside(backup)}>Beside it</button>
      <${Twice} sure="Replace the chat" act=${() => restoreFrom(one, backup).then(() => again(look + 1))}>Restore</${Twice}></li>`)}</ul>`;
}

export function Trash() {
  const [look, again] = useState(0);
  const found = useRead(async () => ({ chats: await all(client.listChats({ deleted: true })), entries: (await client.trash()).entries }), [look]);
  const shown = chat.value;
  const done = async () => {
    again(look + 1);
    await relist();
  };
  const restoreChat = async ({ chat_id, chat: name }) => {
    const back = await write(client.restoreChat(chat_id));
    await done();
    if (back) go(back.name.startsWith("id:") ? name : back.name);
  };
  const restoreOwner = async (name) => {
    const [kind, text] = [name.slice(0, name.indexOf(":")), name.slice(name.indexOf(":") + 1)];
    if (await write(client.restoreOwner({ [kind]: text }).then(() => true))) tell(`${text} is back.`);
    await done();
  };
  const empty = async (entries) => {
    if (await write(client.emptyTrash({ entries }))) tell("Removed for good. Backups of chats stay.");
    await done();
  };
  // What went with its character comes back with it.
  const chats = (found?.chats ?? []).filter((one) => !one.deleted_with);
  const others = (found?.entries ?? []).filter(({ reason, name }) => reason === "orphaned" || /^(character:[^/]*|preset:.*)$/.test(name));
  const entryOf = (one) => found.entries.find(({ entry }) => entry === `${one.deleted_ms}-${one.chat_id}`)?.entry;
  return html`${shown && html`<p><button onClick=${() => write(shown.remove()).then(done)}>Put “${chatTitle(shown.name)}” into the trash</button></p>`}
    ${found && !found.entries.length && html`<p class="hint">The trash is empty.</p>`}
    <ul class="rows">${chats.map((one) => html`<li key=${`${one.chat_id} ${one.deleted_ms}`}><span>${chatTitle(one.chat)}<small>${dateTime.format(one.deleted_ms)} · ${one.count} messages</small></span>
        <button onClick=${() => restoreChat(one)}>Restore</button>${entryOf(one) && html`<${Twice} sure="For good" act=${() => empty([entryOf(one)])}>Remove</${Twice}>`}</li>`)}
      ${others.map(({ entry, name, deleted_ms, reason, size_bytes }) => html`<li key=${entry}><span>${name}<small>${dateTime.format(deleted_ms)} · ${reason} · ${bytes(size_bytes)}</small></span>
        ${reason !== "orphaned" && html`<button onClick=${() => restoreOwner(name)}>Restore</button>`}<${Twice} sure="For good" act=${() => empty([entry])}>Remove</${Twice}></li>`)}</ul>`;
}
