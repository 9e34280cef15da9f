/* What a chat was: its commits, itself at an earlier version, its backups. Loading this gives chats the verbs of `Past`; it
   is `tellback/history`. */

import type { BackupCreated, BackupFrame, BackupListFrame, HistoryFrame } from "./frames.js";
import { Chat, inner } from "./index.js";
import type { Intent } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { Write } from "./replica.js";

const { live, mixin } = inner;

export abstract class Past {
  /** @internal */
  abstract ask<Answer>(request: Write): Promise<Answer>;
  /** @internal */
  abstract write(intent: Intent): Promise<WriteResult>;

  /** A page of commits with seq > `after`. */
  history(after = 0, limit = 100): Promise<HistoryFrame> {
    return this.ask({ type: "history", after, limit });
  }

  /** The chat as it was at `seq`. */
  at(seq: number): Promise<HistoryFrame> {
    return this.ask({ type: "history", at: seq });
  }

  backups(): Promise<BackupListFrame> {
    return this.ask({ type: "backup-list" });
  }

  /** A page of what a backup holds. */
  backup(backup: string, cursor?: string): Promise<BackupFrame> {
    return this.ask({ type: "backup-get", backup, ...(cursor === undefined ? {} : { cursor }) });
  }

  backUp(): Promise<BackupCreated> {
    return this.ask({ type: "backup-create" });
  }

  /** Make the chat that of a backup; with `to` a new chat beside it. */
  restoreBackup(backup: string, { to, force = false }: { to?: string; force?: boolean } = {}): Promise<WriteResult> {
    return this.write(live({ type: "backup-restore", backup, ...(to === undefined ? {} : { to }), ...(force ? { force } : {}) }));
  }
}

declare module "./chat.js" {
  interface Chat extends Omit<Past, "ask" | "write"> {}
}
mixin(Chat, Past);
