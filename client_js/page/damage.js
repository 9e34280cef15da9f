/* Above a chat that can be read and not written: which lines of its file are no messages, and the way back. */

import { useEffect, useState } from "preact/hooks";
import { html } from "./html.js";
import { dateTime } from "./format.js";
import { restoreFrom, tell } from "./store.js";

const LINES_MAX = 5;

export function DamageBanner({ chat }) {
  const lines = chat.damage ?? [];
  const [backups, setBackups] = useState(null);
  const [isAsked, ask] = useState(false);
  useEffect(() => {
    let isWanted = true;
    chat.backups().then((found) => isWanted && setBackups(found.backups ?? []), (error) => isWanted && tell(error.reason ?? String(error), "bad"));
    return () => (isWanted = false);
  }, [chat]);
  const last = backups?.find((one) => one.reason !== "piece");
  return html`<section class="banner" role="alert" aria-label="Damaged file">
    <p><b>This chat can be read, not written:</b> ${lines.length === 1 ? "a line" : "lines"} of its file cannot be read. Nothing is thrown away.</p>
    ${lines.length > 0 && html`<ul>${lines.slice(0, LINES_MAX).map(({ line, problem }) => html`<li key=${line}>${line ? `Line ${line}` : "The file as a whole"}: ${problem}</li>`)}
      ${lines.length > LINES_MAX && html`<li>and ${lines.length - LINES_MAX} more</li>`}</ul>`}
    <p>${last
      ? isAsked
        ? html`What there is now is backed up first. <button class="main" onClick=${() => restoreFrom(chat, last.backup).then(() => ask(false))}>Restore it now</button> <button onClick=${() => ask(false)}>Leave it</button>`
        : html`<button onClick=${() => ask(true)}>Restore the backup of ${dateTime.format(last.taken_ms)} (${last.count} messages)</button>`
      : backups && "There is no backup of it."} “tellback repair” on the server takes from the log what it can.</p>
  </section>`;
}
