/* Who is connected and what is open: the user's connections, the slow ones first, and each live chat with its three positions. */

import { usePolled } from "./console_parts.js";
import { bytes, dateTime, duration } from "./format.js";
import { html } from "./html.js";
import { chatTitle, client } from "./store.js";

export function Live() {
  const found = usePolled(() => client.serverStatus());
  if (!found) return html`<p class="hint">Asking …</p>`;
  if (!found.value) return html`<p class="hint">The server does not answer.</p>`;
  const { connections, connections_total, owners, owners_total } = found.value;
  return html`<h2 id="live-chats">Chats in memory: ${owners_total}</h2>
    <table class="figures" aria-labelledby="live-chats"><thead><tr><th scope="col">Chat</th><th scope="col" title="Commits that were accepted">Sequenced</th><th scope="col" title="On the disk, acknowledged and told">Durable</th><th scope="col" title="In the chat's files">In files</th></tr></thead>
      <tbody>${owners.map((one) => html`<tr key=${one.name}><th scope="row">${chatTitle(one.name)}<small>${one.connections ?? 0} open${one.unfolded_ms ? ` · files ${duration(one.unfolded_ms)} behind` : ""}${one.read_only ? " · read-only" : ""}</small></th>
        <td>${one.sequenced}</td><td class=${one.durable < one.sequenced ? "late" : ""}>${one.durable}</td><td class=${one.checkpointed < one.durable ? "late" : ""}>${one.checkpointed}</td></tr>`)}</tbody></table>
    ${owners_total > owners.length && html`<p class="hint">And ${owners_total - owners.length} more.</p>`}
    <h2>Connections: ${connections_total}</h2>
    <ul class="rows">${connections.map((one) => html`<li key=${one.session}><${Connection} ...${one}/></li>`)}</ul>
    ${connections_total > connections.length && html`<p class="hint">And ${connections_total - connections.length} more.</p>`}`;
}

function Connection({ session, client: software = "", address, connected_ms, open = 0, names = [], producing, in_flight, waiting_bytes, slow, behind }) {
  // Its own question for this is on its way, too.
  const isOwn = session === client.session ? 1 : 0;
  const troubles = [slow && "reads slowly", waiting_bytes && `${bytes(waiting_bytes)} wait for it`, behind && `fell behind ${behind === 1 ? "once" : `${behind} times`}`].filter(Boolean);
  const facts = [software, address, `since ${dateTime.format(connected_ms)}`, `${open} open${names.length ? `: ${names.map(chatTitle).join(", ")}` : ""}`, in_flight - isOwn > 0 && `${in_flight - isOwn} requests on their way`, producing && "writes a reply"].filter(Boolean);
  return html`<span><b>${isOwn ? "This tab" : `Tab ${session.slice(0, 8)}`}</b>${troubles.length > 0 && html` <b class="late">${troubles.join(", ")}</b>`}<small>${facts.join(" · ")}</small></span>`;
}
