/* What goes over this page's wire: counted, and kept while somebody looks. */

import { signal } from "@preact/signals";

const FRAMES_MAX = 200;
const encoder = new TextEncoder();

/** What this tab sent and received last, while `isTapping`. */
export const frames = signal([]);
export const isTapping = signal(false);
/** Bytes of all text frames so far, with their heads. */
export const wire = { sent: 0, received: 0 };
let tapped = 0;

export class TappedSocket extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols);
    this.addEventListener("message", ({ data }) => tap("received", data));
  }

  send(text) {
    tap("sent", text);
    super.send(text);
  }
}

function tap(direction, text) {
  const bytes = encoder.encode(text).length;
  // RFC 6455, 5.2: two bytes, a longer length, and the mask of what a client sends.
  wire[direction] += bytes + (bytes < 126 ? 2 : bytes < 65_536 ? 4 : 10) + (direction === "sent" ? 4 : 0);
  // The token of a hello stays unseen.
  if (isTapping.peek() && !/^\{"type":"(hello|auth)"/.test(text)) frames.value = [...frames.peek().slice(1 - FRAMES_MAX), { id: ++tapped, direction, text, at: Date.now() }];
}
