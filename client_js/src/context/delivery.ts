/* Events on their way to the listeners: in order, one after the other, each awaited.

   - Whoever installs commits never waits for a listener; past the bound what waits becomes one `CHAT_CHANGED`, which
     means: read the chat again.
   - Events about what is in a chat end where another chat is shown: their indexes would be read against the wrong one.
     Events about chats as a whole are delivered all the same. */

import { EventTypes, type EventSource, type Told } from "./emitter.js";

const EVENTS_MAX = 1024;
const ABOUT_WHOLE_CHATS = new Set<string>([
  EventTypes.CHAT_CREATED, EventTypes.GROUP_CHAT_CREATED, EventTypes.CHAT_RENAMED, EventTypes.CHAT_DELETED, EventTypes.GROUP_CHAT_DELETED,
  EventTypes.ONLINE_STATUS_CHANGED, EventTypes.WRITE_CONFLICTED,
]);

export class Delivery {
  private waiting: Told[] = [];
  private running: Promise<void> | undefined;

  constructor(private readonly source: EventSource, private readonly chatName: () => string | undefined) {}

  tell(told: readonly Told[]): void {
    for (const event of told) {
      if (this.waiting.length >= EVENTS_MAX) {
        this.dropContents();
        this.waiting = [...this.waiting.slice(1 - EVENTS_MAX), [EventTypes.CHAT_CHANGED, this.chatName()]];
        if (!ABOUT_WHOLE_CHATS.has(event[0])) continue;
      }
      this.waiting.push(event);
    }
    this.running ??= this.deliver();
  }

  /** Another chat is shown. */
  dropContents(): void {
    this.waiting = this.waiting.filter(([name]) => ABOUT_WHOLE_CHATS.has(name));
  }

  /** Wait until nothing waits for a listener. */
  async delivered(): Promise<void> {
    while (this.running) await this.running;
  }

  private async deliver(): Promise<void> {
    await undefined;
    for (let event; (event = this.waiting.shift()); ) {
      const [name, ...given] = event;
      await this.source.emit(name, ...given);
    }
    this.running = undefined;
  }
}
