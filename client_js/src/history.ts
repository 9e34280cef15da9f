/* What a chat was: its commits, itself at an earlier version, its backups, and how it is repaired. Loading this gives chats
   the verbs of `Past`; it is `tellback/history`. */

import type { BackupCreated, BackupFrame, BackupListFrame, ChatRepairFrame, HistoryFrame, HistoryPart } from "./frames.js";
import { Chat, inner, type Client } from "./index.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { Write } from "./replica.js";
import type { Subscription } from "./subscription.js";

const { live, mixin } = inner;

export abstract class Past {
  /** @internal */
  abstract readonly client: Client;
  /** @internal */
  abstract readonly subscription: Subscription;
  /** @internal */
  abstract write(intent: Intent): Promise<WriteResult>;

  /** A page of commits with seq > `after`. */
  history(after = 0, limit = 100): Promise<HistoryFrame> {
    return asked(this, { type: "history", after, limit });
  }

  /** The chat as it was at `seq`. */
  at(seq: number): Promise<HistoryFrame> {
    return new Promise((resolve, reject) => {
      let whole: HistoryFrame;
      // What is large comes in parts, and from its beginning when the connection ends between them.
      this.client.request({ type: "history", chat: this.subscription.address, at: seq }, (frame: HistoryFrame | HistoryPart, error) => {
        if (error) return reject(error);
        if (frame.type === "history") whole = { ...frame, messages: [...(frame.messages ?? [])] };
        else whole.messages!.push(...frame.messages);
        if (frame.type === "history" ? !frame.parts : frame.part === frame.of) resolve(whole);
      });
    });
  }

  backups(): Promise<BackupListFrame> {
    return asked(this, { type: "backup-list" });
  }

  /** A page of what a backup holds. */
  backup(backup: string, cursor?: string): Promise<BackupFrame> {
    return asked(this, { type: "backup-get", backup, ...(cursor === undefined ? {} : { cursor }) });
  }

  backUp(): Promise<BackupCreated> {
    return asked(this, { type: "backup-create" });
  }

  /** Make the chat that of a backup; with `to` a new chat beside it. */
  restoreBackup(backup: string, { to, force = false }: { to?: string; force?: boolean } = {}): Promise<WriteResult> {
    return this.write(live({ type: "backup-restore", backup, ...(to === undefined ? {} : { to }), ...(force ? { force } : {}) }));
  }

  /** What is wrong with the chat's files and what the server can put right; with `apply` it does. */
  repair({ apply = false } = {}): Promise<ChatRepairFrame> {
    return asked(this, { type: "chat-repair", ...(apply ? { apply } : {}) });
  }
}

const asked = <Answer>({ client, subscription }: Past, request: Write): Promise<Answer> => client.ask({ chat: subscription.address, ...request });

declare module "./chat.js" {
  interface Chat extends Omit<Past, "client" | "subscription" | "write"> {}
}
mixin(Chat, Past);
