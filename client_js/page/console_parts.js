/* What the views of the console share. */

import { useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { html } from "./html.js";
import { tell } from "./store.js";

const LOOK_MS = 2000;

/** What `read` gives, read again when `when` changes; null before, and an error as a notice. */
export function useRead(read, when) {
  const found = useSignal(null);
  useEffect(() => {
    let isWanted = true;
    read().then((value) => isWanted && (found.value = value), (error) => isWanted && tell(error.reason ?? String(error), "bad"));
    return () => (isWanted = false);
  }, when);
  return found.value;
}

/** As `useRead`, again and again while the page is seen; undefined when there is no answer. */
export function usePolled(read) {
  const [look, again] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && again((count) => count + 1), LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  return useRead(() => read().then((value) => ({ value }), () => ({})), [look]);
}

export const NoChat = () => html`<p class="hint">Open a chat to see this of it.</p>`;

/** A button that asks once more before it acts. */
export function Twice({ children, sure, act }) {
  const [isAsked, ask] = useState(false);
  return isAsked ? html`<button class="main" onBlur=${() => ask(false)} ref=${(button) => button?.focus()} onClick=${() => (ask(false), act())}>${sure}</button>` : html`<button onClick=${() => ask(true)}>${children}</button>`;
}

/** Counts by upper bound in ms, the last one above all bounds. */
export function Histogram({ bounds, counts }) {
  const most = Math.max(1, ...counts);
  const label = (index) => (index < bounds.length ? `≤ ${bounds[index]} ms` : `over ${bounds.at(-1)} ms`);
  return html`<table class="bars"><tbody>${counts.map((count, index) => html`<tr key=${index}><th scope="row">${label(index)}</th><td><span class="bar" style=${{ width: `${(100 * count) / most}%` }}></span></td><td>${count}</td></tr>`)}</tbody></table>`;
}
