/* What `createFloorState` gives. */

import type { Chat } from "../chat.js";
import { floor as intentOf } from "../floors.js";
import type { Operation, TellbackError } from "../index.js";

/** One namespace of floor state, for whichever chat is shown. */
export class FloorState {
  private readonly life = { destroyed: false };

  constructor(private readonly chat: () => Chat | undefined, readonly namespace: string) {}

  /** Change the state by a function of it; anything but an object is no change. False for a wrong floor, and once destroyed. */
  update(reducer: (current: any) => any, { floor, swipeId }: { floor?: number; swipeId?: number } = {}): Promise<boolean> {
    return this.write({ update: reducer }, floor, swipeId);
  }

  /** Operations that lead on from what `get` gives. */
  patch(operations: readonly Operation[], { floor, swipeId }: { floor?: number; swipeId?: number } = {}): Promise<boolean> {
    return this.write({ patch: operations }, floor, swipeId);
  }

  async get(): Promise<any> {
    return (await this.chat()?.state(this.namespace).get()) ?? null;
  }

  /** Wait for own writes; there is never a rebuild to wait for. */
  async ready(): Promise<void> {
    await this.chat()?.saved();
  }

  destroy(): void {
    this.life.destroyed = true;
  }

  private async write(change: Parameters<typeof intentOf>[1], floor?: number, swipe?: number): Promise<boolean> {
    const chat = this.chat();
    if (this.life.destroyed || !chat) return false;
    try {
      await chat.write(intentOf(this.namespace, change, { ...(floor === undefined ? {} : { floor }), ...(swipe === undefined ? {} : { swipe }) }));
      return true;
    } catch (error) {
      if (/^(message-unknown|swipe-unknown|bad-frame)$/.test((error as TellbackError).code)) return false;
      throw error;
    }
  }
}
