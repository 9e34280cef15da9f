/* A chat as this client knows it: what the server confirmed, and on top of it the own writes without an answer.

   - A snapshot and the commits after it give the same chat as a fresh snapshot.
   - A commit is installed only behind the one it names as its predecessor; `follows` tells.
   - An own write is shown as it was asked. What the server makes of it (swipes kept in step, floor states, ids) comes
     with its answer, which takes the place of the guess.
   - A state document is known when it stands in `states`; what travels without content is unknown until asked for. */

import type { Ack, SkippedCommit, Version } from "./frames.js";
import { newMessageId } from "./ids.js";
import { applyPatch, mergeToPatch } from "./patch.js";
import { freeze, type Json, type JsonObject } from "./values.js";

export type Message = { readonly [member: string]: any };
export type Effect = NonNullable<Ack["ops"]>[number];
/** A request without what the lane adds to it. */
export type Write = { type: string; [field: string]: any };

export interface StateDocument {
  version: Version | null;
  /** undefined: there is no such document. */
  data: Json | undefined;
  skipped?: SkippedCommit[];
}

/** Metadata, messages and states, at `head`. */
export class ChatDocument {
  deleted = false;
  private list: readonly Message[] | undefined;

  constructor(
    public name: string,
    readonly chatId: string,
    public version: Version,
    public head: Version,
    public metadata: JsonObject,
    public messages: Map<string, Message>,
    readonly states = new Map<string, StateDocument>(),
  ) {}

  /** The messages in order; another array after every change. */
  get all(): readonly Message[] {
    return (this.list ??= Object.freeze([...this.messages.values()]));
  }

  copy(): ChatDocument {
    const states = new Map([...this.states].map(([namespace, document]) => [namespace, { ...document }]));
    const made = new ChatDocument(this.name, this.chatId, this.version, this.head, this.metadata, new Map(this.messages), states);
    made.list = this.list;
    return made;
  }

  replace(metadata: JsonObject, messages: readonly Message[]): void {
    this.list = undefined;
    this.metadata = freeze(metadata);
    this.messages = new Map(messages.map((message) => [message.id, freeze(message)]));
  }

  /** Install one effect on messages or metadata. One on something that is not there changes nothing. */
  apply(effect: Effect): void {
    this.list = undefined;
    switch (effect.op) {
      case "append":
        for (const message of effect.messages) if (!this.messages.has(message.id as string)) this.messages.set(message.id as string, freeze(message));
        break;
      case "insert": {
        const { after } = effect;
        if (after !== null && !this.messages.has(after)) return this.apply({ op: "append", messages: effect.messages });
        const added = effect.messages.filter((message) => !this.messages.has(message.id as string)).map((message) => [message.id as string, freeze(message)] as const);
        const all = [...this.messages];
        all.splice(after === null ? 0 : all.findIndex(([id]) => id === after) + 1, 0, ...(added as [string, Message][]));
        this.messages = new Map(all);
        break;
      }
      case "patch": {
        const { message: id, patch } = effect;
        const message = this.messages.get(id);
        if (message) this.messages.set(id, freeze({ id, ...applyPatch(message, patch as any) }));
        break;
      }
      case "delete":
        for (const id of effect.messages) this.messages.delete(id);
        break;
      case "metadata":
        this.metadata = freeze(applyPatch(this.metadata, effect.patch as any));
    }
  }
}

/** What the modules beside the SDK bring: what writes of theirs ask for, and where state documents are kept. */
export const beside: {
  readonly meanings: Record<string, (write: Write, document: ChatDocument, version: Version | null) => Effect[]>;
  /** Install one effect of a commit on a state document; `again` when the commit had one before. */
  install?: (document: ChatDocument, effect: StateChange, again: boolean) => void;
  /** Show one that was asked for. */
  show?: (document: ChatDocument, effect: StateChange) => void;
} = { meanings: {} };

export type StateChange = Extract<Effect, { namespace: string }>;

/** The confirmed chat with the state documents that were asked for. */
export class Replica {
  constructor(readonly document: ChatDocument) {}

  get head(): Version {
    return this.document.head;
  }

  /** True when the replica holds the commit already. */
  knows(version: Version): boolean {
    return version.epoch < this.head.epoch || (version.epoch === this.head.epoch && version.seq <= this.head.seq);
  }

  /** True when a commit is the next one; an ack does not say what came before it. */
  follows(version: Version, previous?: string): boolean {
    const { head } = this;
    return version.epoch === head.epoch && version.seq === head.seq + 1 && (previous === undefined || previous === head.integrity);
  }

  install(version: Version, effects: readonly Effect[]): void {
    const { document } = this;
    const changed = new Set<string>();
    for (const effect of effects) {
      if ("namespace" in effect) {
        beside.install?.(document, effect, changed.has(effect.namespace));
        changed.add(effect.namespace);
      } else if (effect.op === "renamed") {
        document.name = effect.to;
        document.deleted = false;
      } else if (effect.op === "deleted") {
        document.deleted = true;
      } else {
        document.apply(effect);
        document.version = version;
      }
    }
    document.head = version;
  }

  /** The chat with own writes on top, in order. */
  view(writes: readonly Write[]): ChatDocument {
    return writes.reduce(show, this.document);
  }
}

/** The chat with one own write on top. One that does not fit shows nothing: the server will refuse it. */
export function show(view: ChatDocument, write: Write): ChatDocument {
  const draft = view.copy();
  try {
    for (const request of write.type === "batch" ? write.requests : [write]) showRequest(draft, request);
    return draft;
  } catch {
    return view;
  }
}

function showRequest(view: ChatDocument, write: Write): void {
  if (write.type === "patch" && write.message === undefined) {
    const whole = applyPatch({ metadata: view.metadata, messages: view.all }, write.patch);
    view.replace(
      whole.metadata,
      whole.messages.map((one: any, index: number) => ({ id: view.all[index]?.id ?? newMessageId(), ...one })),
    );
    return;
  }
  for (const effect of asked(write, view, null)) {
    if ("namespace" in effect) beside.show?.(view, effect);
    else view.apply(effect);
  }
}

/** What is asked of a document: the patch itself, a merge written out, or all of it. */
export const operationsOf = ({ patch, merge, set }: Write, target: Json): any =>
  patch ?? (merge === undefined ? [{ op: "replace", path: "", value: set }] : mergeToPatch(target, merge));

/** What a write asks for, without what only the server works out. */
function asked(write: Write, document: ChatDocument, version: Version | null): Effect[] {
  const { message, messages, patch } = write;
  switch (write.type) {
    case "append":
    case "generation-start":
    case "generate":
      return messages ? [{ op: "append", messages }] : [];
    case "delete":
      return [{ op: "delete", messages }];
    case "patch":
      return message === undefined ? [] : [{ op: "patch", message, patch }];
    case "metadata-update":
      return [{ op: "metadata", patch: operationsOf(write, document.metadata) }];
    case "chat-delete":
    case "owner-delete":
      return [{ op: "deleted" }];
    default:
      return beside.meanings[write.type]?.(write, document, version) ?? [];
  }
}

/** The effects of an ack: those it carries, or else what was asked, with the ids that it gives. */
export function askedEffects(write: Write, ack: Ack, document: ChatDocument): Effect[] {
  if (ack.ops) return ack.ops;
  if (ack.resync) return [];
  return asked(write, document, ack.version).flatMap((effect): Effect[] => {
    if (effect.op === "append") return [{ ...effect, messages: effect.messages.map((message, index) => ({ ...message, id: ack.messages![index]! })) }];
    if (!("patch" in effect)) return [effect];
    const patch = effect.patch!.filter(({ op }) => op !== "test");
    // A state document has another version although nothing in it changed.
    return patch.length || effect.op === "state" ? [{ ...effect, patch }] : [];
  });
}
