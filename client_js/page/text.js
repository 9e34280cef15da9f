/* Message text as elements, never as markup: every character ends up in a text node.

   Known: **strong**, *emphasis*, `code`, "speech", fenced code, paragraphs and line ends; anything else is what it says. */

import { html } from "./html.js";

const FENCE = /^```[^\n]*\n([\s\S]*?)(?:\n```[ \t]*$|(?![\s\S]))/m;
const SPAN = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\n]+\*)|("[^"\n]+"|“[^”\n]+”)/;
/** Longer texts are shown as they are: nobody waits for a machine's novel to be decorated. */
const DECORATED_UNITS_MAX = 100_000;

export function textOf(source) {
  const text = typeof source === "string" ? source : source === undefined ? "" : JSON.stringify(source);
  return text.length > DECORATED_UNITS_MAX ? [html`<p>${text}</p>`] : blocks(text);
}

function blocks(text) {
  const out = [];
  for (let rest = text; rest; ) {
    const fence = FENCE.exec(rest);
    const before = fence ? rest.slice(0, fence.index) : rest;
    for (const paragraph of before.split(/\n{2,}/)) if (paragraph.trim()) out.push(html`<p>${spans(paragraph.replace(/^\n+|\n+$/g, ""))}</p>`);
    if (!fence) break;
    out.push(html`<pre><code>${fence[1]}</code></pre>`);
    rest = rest.slice(fence.index + fence[0].length);
  }
  return out;
}

function spans(text) {
  const out = [];
  for (let rest = text; rest; ) {
    const found = SPAN.exec(rest);
    if (!found) {
      out.push(rest);
      break;
    }
    if (found.index) out.push(rest.slice(0, found.index));
    const [whole, code, strong, emphasis, speech] = found;
    if (code) out.push(html`<code>${code.slice(1, -1)}</code>`);
    else if (strong) out.push(html`<strong>${spans(strong.slice(2, -2))}</strong>`);
    else if (emphasis) out.push(html`<em>${spans(emphasis.slice(1, -1))}</em>`);
    else if (speech) out.push(html`<q>${speech[0]}${spans(speech.slice(1, -1))}${speech.at(-1)}</q>`);
    rest = rest.slice(found.index + whole.length);
  }
  return out;
}
