/* The wire of this tab while one looks: every frame, with a filter. */

import { useEffect, useState } from "preact/hooks";
import { timeOfDay } from "./format.js";
import { html } from "./html.js";
import { frames, isTapping } from "./tap.js";

const SHOWN_UNITS = 2000;

export function Frames() {
  const [filter, setFilter] = useState("");
  useEffect(() => {
    isTapping.value = true;
    return () => (isTapping.value = false);
  }, []);
  const words = filter.toLowerCase().split(/\s+/);
  const shown = frames.value.filter((one) => words.every((word) => `${one.direction} ${one.text}`.toLowerCase().includes(word)));
  return html`<input type="search" aria-label="Filter frames" placeholder="Filter, for instance: sent append" value=${filter} onInput=${(event) => setFilter(event.target.value)}/>
    ${!frames.value.length && html`<p class="hint">What this tab sends and receives from now on shows up here.</p>`}
    <ol class="commits">${shown.toReversed().map((one) => html`<li key=${one.id}><details><summary>${one.direction === "sent" ? "→" : "←"} <span class="unseen">${one.direction}</span>${/"type":"([^"]*)"/.exec(one.text)?.[1] ?? "?"} <small>${timeOfDay.format(one.at)} · ${one.text.length} characters</small></summary>
      <pre tabindex="0">${one.text.slice(0, SHOWN_UNITS)}${one.text.length > SHOWN_UNITS ? " …" : ""}</pre></details></li>`)}</ol>`;
}
