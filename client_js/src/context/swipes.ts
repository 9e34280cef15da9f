/* The seed's `context.swipe`. */

import { inner } from "../index.js";
import type { Base, Key } from "./base.js";

const { refused } = inner;

export class Swipes {
  /** Whether a front end shows the buttons. */
  visible = true;
  countersVisible = true;
  private moving = 0;

  constructor(private readonly context: Base) {}

  left(event?: unknown, options: object = {}): Promise<boolean> {
    return this.to(event, "left", options);
  }

  right(event?: unknown, options: object = {}): Promise<boolean> {
    return this.to(event, "right", options);
  }

  /** Show another swipe of the last message, or of `forceMesId`. False when there is none: a front end would generate there. */
  async to(_event: unknown, direction = "right", { forceMesId, forceSwipeId }: { forceMesId?: Key; forceSwipeId?: number } = {}): Promise<boolean> {
    const { chat } = this.context.current();
    const { length } = chat.messages;
    const message = chat.message(this.context.known(forceMesId ?? length - 1))!;
    const shown = message.swipe_id ?? 0;
    const total = message.swipes?.length ?? 1;
    const isGreeting = length === 1 && message.is_user !== true;
    const wanted = forceSwipeId ?? (direction === "left" ? (shown + total - 1) % total : shown + 1 < total ? shown + 1 : isGreeting ? 0 : shown);
    if (!Number.isInteger(wanted) || wanted < 0 || wanted >= total) throw refused("swipe-unknown", `There is no swipe ${wanted}.`, "/swipe");
    if (wanted === shown) return false;
    this.moving++;
    try {
      await chat.swipeSelect(message.id, wanted);
      return true;
    } finally {
      this.moving--;
    }
  }

  isAllowed(): boolean {
    const { chat } = this.context;
    if (!chat.length || this.moving) return false;
    const held = this.context.current().chat;
    return held.status !== "read-only" && !held.generations.some(({ state }) => state === "running");
  }

  state(): "none" | "swiping" {
    return this.moving ? "swiping" : "none";
  }

  show(): void {
    this.visible = true;
  }

  hide({ hideCounters = false } = {}): void {
    this.visible = false;
    this.countersVisible = !hideCounters;
  }

  /** Nothing here: whoever draws reads `chat`. */
  refresh(): void {}
}
