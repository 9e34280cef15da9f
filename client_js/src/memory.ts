/* An outbox for programs without a profile, and for tests: what is kept as long as the object. It is `tellback/memory`. */

import type { Entry, Outbox, StoreChange } from "./outbox.js";

export class MemoryOutbox implements Outbox {
  readonly entries = new Map<string, Map<number, Entry>>();

  async load(session: string): Promise<Entry[]> {
    return [...(this.entries.get(session)?.values() ?? [])].sort((one, other) => one.requestId - other.requestId);
  }

  async sessions(): Promise<string[]> {
    return [...this.entries].filter(([, entries]) => entries.size).map(([session]) => session);
  }

  async write(session: string, changes: readonly StoreChange[]): Promise<void> {
    const entries = this.entries.get(session) ?? new Map<number, Entry>();
    this.entries.set(session, entries);
    for (const change of changes) {
      if ("put" in change) {
        entries.delete(change.replaces ?? 0);
        entries.set(change.put.requestId, change.put);
      } else if ("done" in change) entries.delete(change.done);
      else if (entries.has(change.conflicted)) entries.set(change.conflicted, { ...entries.get(change.conflicted)!, conflicted: true });
    }
  }
}
