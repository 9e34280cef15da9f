/* A list that holds only the rows one can see: heights are measured once a row was there, and guessed before.

   - Whoever is at the end stays at the end until they scroll up, however little; whoever reads above stays where they read,
     whatever is measured above. */

import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { html } from "./html.js";

const GUESS_PX = 96;
const MARGIN_PX = 900;
const END_PX = 40;

export function Virtual({ items, keyOf, row, label, follow }) {
  const scroller = useRef(null);
  const heights = useRef(new Map());
  const atEnd = useRef(true);
  const lastTop = useRef(0);
  const [, draw] = useState(0);
  const again = useCallback(() => draw((count) => count + 1), []);

  const height = (item) => heights.current.get(keyOf(item)) ?? GUESS_PX;
  const tops = new Float64Array(items.length + 1);
  items.forEach((item, index) => (tops[index + 1] = tops[index] + height(item)));
  const total = tops[items.length];
  const view = scroller.current;
  const viewed = view?.clientHeight ?? 800;
  const at = atEnd.current ? total - viewed : (view?.scrollTop ?? 0);
  const first = Math.max(0, indexAt(tops, at - MARGIN_PX));
  const last = Math.min(items.length, indexAt(tops, at + viewed + MARGIN_PX) + 1);

  useLayoutEffect(() => {
    const element = scroller.current;
    let above = 0;
    let isChanged = false;
    for (const node of element.querySelectorAll("[data-row]")) {
      const index = Number(node.dataset.row);
      const key = items[index] && keyOf(items[index]);
      if (key === undefined) continue;
      const measured = node.getBoundingClientRect().height;
      const before = heights.current.get(key) ?? GUESS_PX;
      if (Math.abs(measured - before) < 0.5) continue;
      heights.current.set(key, measured);
      isChanged = true;
      if (tops[index] + before <= element.scrollTop) above += measured - before;
    }
    if (atEnd.current) element.scrollTop = element.scrollHeight;
    else if (above) element.scrollTop += above;
    lastTop.current = element.scrollTop;
    if (isChanged) again();
  });

  useLayoutEffect(() => {
    atEnd.current = true;
    again();
  }, [follow]);

  useLayoutEffect(() => {
    const sizes = new ResizeObserver(() => {
      heights.current.clear();
      again();
    });
    sizes.observe(scroller.current);
    return () => sizes.disconnect();
  }, []);

  const onScroll = () => {
    const element = scroller.current;
    const isUp = element.scrollTop < lastTop.current;
    lastTop.current = element.scrollTop;
    atEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < (isUp ? 1 : END_PX);
    again();
  };

  return html`<div class="list" ref=${scroller} onScroll=${onScroll} tabindex="0" role="feed" aria-label=${label}>
    <div class="space" style=${{ height: `${tops[first]}px` }}></div>
    ${items.slice(first, last).map((item, offset) => html`<div key=${keyOf(item)} data-row=${first + offset}>${row(item, first + offset)}</div>`)}
    <div class="space" style=${{ height: `${total - tops[last]}px` }}></div>
    ${!atEnd.current && html`<button class="to-end" onClick=${() => ((atEnd.current = true), again())}>↓ Latest</button>`}
  </div>`;
}

/** The last index whose top is at or above `y`. */
function indexAt(tops, y) {
  let low = 0;
  let high = tops.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (tops[middle] <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}
