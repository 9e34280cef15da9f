/* Light, dark, or as the system is: kept in this browser. */

import { signal } from "@preact/signals";
import { html } from "./html.js";

const KEY = "tellback colours";
const NEXT = { system: "light", light: "dark", dark: "system" };
const SIGNS = { system: "◐", light: "☀", dark: "☾" };

const theme = signal(NEXT[localStorage.getItem(KEY)] ? localStorage.getItem(KEY) : "system");
put(theme.value);

function put(name) {
  document.documentElement.dataset.theme = name;
}

function change() {
  theme.value = NEXT[theme.value];
  localStorage.setItem(KEY, theme.value);
  put(theme.value);
}

export function ThemeSwitch() {
  const words = `Colours: ${theme.value}. Change to ${NEXT[theme.value]}`;
  return html`<button class="plain" aria-label=${words} title=${words} onClick=${change}><span aria-hidden="true">${SIGNS[theme.value]}</span></button>`;
}
