/* The own writes to one owner that have no answer yet, in the order of their op numbers.

   - Numbers are contiguous; the server's `next_op` is the truth about which are used.
   - A number that the server never saw can be given to another body; one that it saw never is.
   - What an earlier life left may have a number that was another request's meanwhile. It is asked before everything that the
     server has not counted, so that nothing is sent as built on it that is not.
   - A write whose parent is gone is not sent under a number that could now mean something else.
   - A base never vouches for more than was seen. `{"op": m}` only stands for what op m itself touched: m may have been
     rebased over commits that this client had not seen when it asked. Everything else is written against the confirmed
     version, and what fits neither waits until the lane is clear. */

import type { Version } from "./frames.js";
import type { PendingWrite } from "./outbox.js";
import type { Replica, Write } from "./replica.js";
import { escaped, has, stringify } from "./values.js";

/** Half of the outcomes that a server keeps for a session, so that `{"op": m}` is known when it arrives. */
const NEAR_WRITES = 128;
const ANYTHING = "*";

/** Past every number of the server: `reconcile` gives another one. */
const NO_NUMBER = 2 ** 40;

/** The write builds on own writes in a way that no base can say; ask again when they have their answers. */
export const ENTANGLED = Symbol("entangled");

export class Lane {
  nextNumber = 1;
  writes: PendingWrite[] = [];

  /** The requests that belong on top of the confirmed chat. */
  shown(): Write[] {
    return this.writes.filter((pending) => !pending.installed && !pending.doomed).map((pending) => pending.write!);
  }

  /** Give a write its base, number and text, behind all others. Throws ENTANGLED, and does nothing, when it cannot have a base. */
  add(pending: PendingWrite, write: Write, requestId: number, replica: Replica): void {
    const based = this.based(write, replica);
    pending.targets = targetsOf(write);
    pending.number = this.nextNumber++;
    encode(pending, based, requestId);
    pending.doomed = pending.installed = false;
    pending.attempts++;
    this.writes.push(pending);
  }

  remove(pending: PendingWrite): void {
    const at = this.writes.indexOf(pending);
    if (at >= 0) this.writes.splice(at, 1);
  }

  /** `parent` made no version: what builds on it will be refused. */
  doomChildren(parent: PendingWrite): void {
    const refused = new Set([parent.number]);
    for (const pending of this.writes) {
      if (pending.number > parent.number && parentsOf(pending.write!).some((number) => refused.has(number))) {
        pending.doomed = true;
        refused.add(pending.number);
      }
    }
  }

  /** Its number is another request's: `reconcile` is to give it one of its own, and the same to what builds on it. */
  giveUpNumber(pending: PendingWrite): void {
    const { number } = pending;
    const moved = new Map([[number, (pending.number += NO_NUMBER)]]);
    pending.installed = false;
    for (const later of this.writes.slice(this.writes.indexOf(pending) + 1)) {
      // Two lives can have left the same number; what comes behind the second builds on that one.
      if (later.number === number) break;
      later.write = reparented(later.write!, moved);
    }
  }

  /** Bring the numbers in line with `nextOp`: writes that got another number with their earlier request ids, and writes
      whose parent is gone, taken out. */
  reconcile(nextOp: number, newRequestId: () => number): { renumbered: [PendingWrite, number][]; orphans: PendingWrite[] } {
    let expected = nextOp;
    const moved = new Map<number, number>();
    const renumbered: [PendingWrite, number][] = [];
    const orphans: PendingWrite[] = [];
    const present = new Set(this.writes.map((pending) => pending.number));
    for (const pending of [...this.writes]) {
      if (pending.number < nextOp) continue;
      const parents = parentsOf(pending.write!);
      if (parents.some((parent) => parent >= nextOp && !present.has(parent))) {
        this.remove(pending);
        present.delete(pending.number);
        orphans.push(pending);
        continue;
      }
      if (pending.number !== expected || parents.some((parent) => moved.has(parent))) {
        moved.set(pending.number, expected);
        pending.number = expected;
        const before = pending.requestId;
        encode(pending, reparented(pending.write!, moved), newRequestId());
        renumbered.push([pending, before]);
      }
      expected++;
    }
    this.nextNumber = expected;
    return { renumbered, orphans };
  }

  private based(write: Write, replica: Replica): Write {
    const { type } = write;
    if (type === "generation-end" || type === "generation-cancel") return write;
    // Only another name is news to it, and the head says which one was seen.
    if (/-rename$|^owner-delete$/.test(type)) return { ...write, base: replica.head.integrity };
    const based = (request: Write) => ({ ...request, base: this.base(request, replica) });
    const whole = type === "batch" ? { ...write, requests: write.requests.map(based) } : based(write);
    return /^(state-|chat-delete|backup-)/.test(type) ? whole : { ...whole, on_conflict: "rebase" };
  }

  private base(request: Write, replica: Replica): unknown {
    const { document } = replica;
    let version: Version | null = document.version;
    if (request.namespace !== undefined) {
      const state = document.states.get(request.namespace);
      version = state?.data === undefined ? null : state.version;
    }
    const confirmed = version?.integrity ?? null;
    if (request.type === "append" || (/^generat/.test(request.type) && !request.target?.message)) {
      // Nothing that comes between changes what an append means. Far behind other own writes the confirmed version would
      // be one that the server has forgotten by the time it gets here; a write nearby is remembered.
      const near = this.writes.at(-NEAR_WRITES);
      return !near || near.doomed ? confirmed : { op: near.number };
    }
    const targets = targetsOf(request);
    for (const pending of [...this.writes].reverse()) {
      if (pending.doomed || pending.installed) continue;
      if (targets.some((mine) => pending.targets.some((theirs) => entangled(mine, theirs)))) {
        if (targets.every((mine) => pending.targets.some((theirs) => covers(theirs, mine)))) return { op: pending.number };
        throw ENTANGLED;
      }
    }
    return confirmed;
  }
}

/** What a request touches: `m:<message id>`, `M:<metadata path>`, `s:<namespace>`; an append what it makes. */
export function targetsOf({ type, namespace, requests, messages = [], message, target, generation, ...request }: Write): string[] {
  if (namespace !== undefined) return [`s:${namespace}`];
  if (requests) return requests.flatMap(targetsOf);
  if (type === "metadata-update") {
    const { patch = [], merge } = request;
    if (has(request, "set")) return ["M:"];
    // Of a merge the server compares each member as a whole.
    if (merge) return Object.keys(merge).map((member) => `M:/${escaped(member)}`);
    return patch.flatMap(({ path, from }: any) => [`M:${path}`, ...(from === undefined ? [] : [`M:${from}`])]);
  }
  if (/-rename$|^owner-delete$/.test(type)) return ["o:"];
  if (/^(append|delete|generate|generation-start)$/.test(type)) {
    return [...messages.map((one: any) => one.id ?? one), ...(target?.message ? [target.message] : [])].map((id) => `m:${id}`);
  }
  return [generation !== undefined ? `g:${generation}` : message !== undefined ? `m:${message}` : ANYTHING];
}

function entangled(mine: string, theirs: string): boolean {
  if (mine === ANYTHING || theirs === ANYTHING) return !mine.startsWith("s:") && !theirs.startsWith("s:");
  return mine === theirs || [[mine, theirs], [theirs, mine]].some(([one, other]) => one!.startsWith("M:") && (other === "M:" || one!.startsWith(`${other}/`)));
}

/** True when the server compared all of `mine` when it accepted `theirs`. */
const covers = (theirs: string, mine: string): boolean => theirs === mine || (theirs.startsWith("M:") && mine.startsWith(`${theirs}/`));

function encode(pending: PendingWrite, write: Write, requestId: number): void {
  pending.requestId = requestId;
  pending.write = named(write, requestId, pending.number);
  pending.data = stringify(pending.write);
  pending.sent = pending.journaled = false;
}

/** A request with its numbers in front: by them the server names it even when it is too large to be read. */
export const named = ({ type, id: _id, op: before, ...rest }: Write, id: number, op = before): Write => ({ type, id, op, ...rest });

/** Numbers of the writes that this one builds on. */
const parentsOf = (write: Write): number[] =>
  [write, ...(write.requests ?? [])].map((one) => one.base?.op).filter((number) => number !== undefined);

function reparented(write: Write, moved: ReadonlyMap<number, number>): Write {
  const { base } = write;
  const again = base?.op === undefined ? write : { ...write, base: { op: moved.get(base.op) ?? base.op } };
  return again.requests ? { ...again, requests: again.requests.map((request: Write) => reparented(request, moved)) } : again;
}
