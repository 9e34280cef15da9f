/* Events by name, and who listens to them: one after the other, in order, awaited; one that fails stands alone. */

export const EventTypes = Object.freeze({
  MESSAGE_SENT: "message_sent",
  MESSAGE_RECEIVED: "message_received",
  MESSAGE_EDITED: "message_edited",
  MESSAGE_UPDATED: "message_updated",
  MESSAGE_DELETED: "message_deleted",
  MESSAGE_SWIPED: "message_swiped",
  MESSAGE_SWIPE_DELETED: "message_swipe_deleted",
  CHAT_CHANGED: "chat_id_changed",
  CHAT_CREATED: "chat_created",
  GROUP_CHAT_CREATED: "group_chat_created",
  CHAT_RENAMED: "chat_renamed",
  CHAT_DELETED: "chat_deleted",
  GROUP_CHAT_DELETED: "group_chat_deleted",
  CHAT_BRANCH_CREATED: "chat_branch_created",
  ONLINE_STATUS_CHANGED: "online_status_changed",
  CHAT_METADATA_CHANGED: "tellback_chat_metadata_changed",
  CHAT_STATE_CHANGED: "tellback_chat_state_changed",
  WRITE_CONFLICTED: "tellback_write_conflicted",
});

export type Listener = (...given: any[]) => unknown;
/** An event's name and its arguments. */
export type Told = [string, ...unknown[]];

export class EventSource {
  private readonly listeners = new Map<string, Listener[]>();

  on(name: string, listener: Listener): void {
    this.listeners.set(name, [...(this.listeners.get(name) ?? []), listener]);
  }

  once(name: string, listener: Listener): void {
    const first: Listener = (...given) => (this.off(name, first), listener(...given));
    this.on(name, first);
  }

  off(name: string, listener: Listener): void {
    this.listeners.set(name, (this.listeners.get(name) ?? []).filter((held) => held !== listener));
  }

  async emit(name: string, ...given: unknown[]): Promise<void> {
    for (const listener of this.listeners.get(name) ?? []) {
      try {
        await listener(...given);
      } catch (error) {
        (globalThis.reportError ?? console.error)(error);
      }
    }
  }
}
