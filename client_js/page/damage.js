/* Above a chat that can be read and not written: which lines of its file are no messages, and the ways back. */

import { useEffect, useState } from "preact/hooks";
import { Twice } from "./console_parts.js";
import { dateTime } from "./format.js";
import { html } from "./html.js";
import { restoreFrom, tell, write } from "./store.js";

const LINES_MAX = 5;

export function DamageBanner({ chat }) {
  const [last, setLast] = useState(null);
  const [plan, setPlan] = useState(null);
  useEffect(() => {
    let isWanted = true;
    chat.backups().then(({ backups = [] }) => isWanted && setLast(backups.find(({ reason }) => reason !== "piece")), () => {});
    // A server whose chats are in a store repairs none.
    chat.repair().then((found) => isWanted && setPlan(found), () => {});
    return () => (isWanted = false);
  }, [chat, chat.head.integrity]);
  const mend = async () => {
    const done = await write(chat.repair({ apply: true }));
    if (done) tell(done.left.length ? "Some of it cannot be repaired." : "Repaired. Every file as it was is kept among the backups.", done.left.length ? "bad" : "");
  };
  const actions = (plan?.repairs ?? []).flatMap((one) => one.actions);
  return html`<section class="banner" role="alert" aria-label="Damaged file">
    <p><b>This chat can be read, not written:</b> ${chat.damage.length === 1 ? "a line" : "lines"} of its file cannot be read. Nothing is thrown away.</p>
    <ul>${chat.damage.slice(0, LINES_MAX).map(({ line, problem }) => html`<li key=${line}>${line ? `Line ${line}` : "The file as a whole"}: ${problem}</li>`)}
      ${chat.damage.length > LINES_MAX && html`<li>and ${chat.damage.length - LINES_MAX} more</li>`}</ul>
    ${actions.length > 0 && html`<p>A repair does this: ${actions.slice(0, LINES_MAX).join("; ")}${actions.length > LINES_MAX ? " …" : "."}</p>`}
    <p class="verbs">${actions.length > 0 && html`<${Twice} sure="Repair it now" act=${mend}>Repair</${Twice}>`}
      ${last && html`<${Twice} sure="Restore it now" act=${() => restoreFrom(chat, last.backup)}>Restore the backup of ${dateTime.format(last.taken_ms)} (${last.count} messages)</${Twice}>`}</p>
  </section>`;
}
