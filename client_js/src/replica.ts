/* A chat as this client knows it: what the server confirmed, and on top of it the own writes without an answer.

   - A snapshot and the commits after it give the same chat as a fresh snapshot.
   - A commit is installed only behind the one it names as its predecessor; `follows` tells.
   - An own write is shown as it was asked. What the server makes of it (swipes kept in step, floor states, ids) comes
     with its answer, which takes the place of the guess.
   - A state document is known when it stands in `states`; what travels without content is unknown until asked for. */

import type { Ack, SkippedCommit, StateValue, Version } from "./frames.js";
import { newMessageId } from "./ids.js";
import { applyPatch, mergeToPatch, type Operation } from "./patch.js";
import { freeze, has, isObject, type Json, type JsonObject } from "./values.js";

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

const LOG_SUFFIX = "__floor_log";

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
    return new ChatDocument(this.name, this.chatId, this.version, this.head, this.metadata, new Map(this.messages), states);
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
        const message = this.messages.get(effect.message);
        if (message) this.messages.set(effect.message, freeze(applyPatch(message, effect.patch as any)));
        break;
      }
      case "delete":
        for (const id of effect.messages) this.messages.delete(id);
        break;
      case "metadata":
        this.metadata = freeze(applyPatch(this.metadata, effect.patch as any));
    }
  }

  applyState(namespace: string, version: Version | null, change: { data?: Json; patch?: any; deleted?: boolean; skipped?: any }): void {
    const known: StateDocument = this.states.get(namespace) ?? { version: null, data: undefined };
    this.states.set(namespace, known);
    known.version = version;
    if (change.deleted) known.data = undefined;
    else if (has(change, "data")) known.data = freeze(change.data!);
    else if (change.patch) known.data = freeze(applyPatch(known.data ?? {}, change.patch));
    if (change.skipped) known.skipped = change.skipped;
  }
}

/** The confirmed chat with the state documents that were asked for. */
export class Replica {
  /** Versions of state documents, as far as they were told; of a character or preset all that there are. */
  readonly versions = new Map<string, Version>();

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
      if (effect.op === "state" || effect.op === "floor") {
        const { namespace } = effect;
        for (const one of effect.op === "floor" ? [namespace, namespace + LOG_SUFFIX] : [namespace]) {
          if (effect.deleted) this.versions.delete(one);
          else this.versions.set(one, effect.version);
        }
        this.installEffect(effect, changed.has(namespace));
        changed.add(namespace);
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

  private installEffect(effect: Extract<Effect, { op: "state" | "floor" }>, again: boolean): void {
    const { states } = this.document;
    const { namespace, version } = effect;
    const known = states.get(namespace);
    // What happened to the log does not travel.
    if (effect.op === "floor") states.delete(namespace + LOG_SUFFIX);
    // The document was asked for and came newer than the commits.
    if (!again && known?.version && known.version.epoch === version.epoch && known.version.seq >= version.seq) return;
    if (effect.deleted || has(effect, "data") || (effect.patch && known && (again || (known.version?.integrity ?? null) === effect.previous))) {
      this.document.applyState(namespace, version, effect as any);
    } else {
      states.delete(namespace);
    }
  }

  /** A document as the server sent it; null: there is none. One that is corrupt stays unknown. */
  installState(namespace: string, value: StateValue | null): void {
    if (value === null) this.document.states.set(namespace, { version: null, data: undefined });
    else if (has(value, "data")) this.document.states.set(namespace, { version: value.version ?? null, data: freeze(value.data!), skipped: value.skipped ?? [] });
  }

  /** The chat with own writes on top, in order. */
  view(writes: Iterable<Write>): ChatDocument {
    const view = this.document.copy();
    for (const write of writes) show(view, write);
    return view;
  }
}

/** Put an own write on top of `view`. One that does not fit shows nothing: the server will refuse it. */
export function show(view: ChatDocument, write: Write): void {
  const draft = view.copy();
  try {
    for (const request of write.type === "batch" ? write.requests : [write]) showRequest(draft, request);
  } catch {
    return;
  }
  view.metadata = draft.metadata;
  for (const [namespace, document] of draft.states) view.states.set(namespace, document);
  view.messages = draft.messages;
  view.apply({ op: "delete", messages: [] });
}

function showRequest(view: ChatDocument, write: Write): void {
  const data = view.states.get(write.namespace)?.data;
  const version = view.states.get(write.namespace)?.version ?? null;
  switch (write.type) {
    case "append":
    case "generation-start":
    case "generate":
      return view.apply({ op: "append", messages: write.messages ?? [] });
    case "delete":
      return view.apply(write as any);
    case "patch":
      if (write.message !== undefined) {
        const message = view.messages.get(write.message);
        if (message) view.messages.set(write.message, freeze({ id: write.message, ...applyPatch(message, write.patch) }));
        return;
      } else {
        const whole = applyPatch({ metadata: view.metadata, messages: view.all }, write.patch);
        view.metadata = freeze(whole.metadata);
        view.messages = new Map(
          whole.messages.map((message: any, index: number) => {
            const id = message.id ?? view.all[index]?.id ?? newMessageId();
            return [id, freeze({ id, ...message })];
          }),
        );
        return;
      }
    case "swipe": {
      const message = view.messages.get(write.message);
      if (message) view.messages.set(write.message, freeze(swiped(message, write)));
      return;
    }
    case "metadata-update":
      return view.apply({ op: "metadata", patch: operationsOf(write, view.metadata) as any });
    case "state-update":
      return view.applyState(write.namespace, version, has(write, "set") ? { data: write.set } : { patch: operationsOf(write, data ?? {}) });
    case "floor-update":
      return view.applyState(write.namespace, version, { patch: write.patch });
    case "state-delete":
      return view.applyState(write.namespace, version, { deleted: true });
  }
}

function operationsOf(write: Write, target: Json): Operation[] {
  if (write.patch) return write.patch;
  return write.merge !== undefined ? mergeToPatch(target, write.merge) : [{ op: "replace", path: "", value: write.set }];
}

const WORKING_COPY = ["send_date", "gen_started", "gen_finished", "extra"];

function swiped(message: Message, write: Write): Message {
  const texts: string[] = [...(message.swipes ?? [message.mes])];
  const first = Object.fromEntries(WORKING_COPY.filter((member) => has(message, member)).map((member) => [member, message[member]]));
  const infos: any[] = [...(message.swipe_info ?? [first])];
  let shown: number = message.swipe_id ?? 0;
  if (write.action === "add") {
    const { mes, ...info } = write.content;
    infos[texts.length] = info;
    texts.push(mes);
    if (write.select !== false) shown = texts.length - 1;
  } else if (!(write.swipe in texts)) {
    return message;
  } else if (write.action === "select") {
    shown = write.swipe;
  } else {
    if (texts.length < 2) return message;
    texts.splice(write.swipe, 1);
    infos.splice(write.swipe, 1);
    if (shown > write.swipe || shown >= texts.length) shown--;
  }
  if (shown === message.swipe_id && write.action !== "delete") return { ...message, swipes: texts, swipe_info: infos };
  const rest = Object.fromEntries(Object.entries(message).filter(([member]) => !WORKING_COPY.includes(member)));
  const info = isObject(infos[shown]) ? infos[shown] : {};
  return { ...rest, ...info, mes: texts[shown]!, swipes: texts, swipe_info: infos, swipe_id: shown };
}

/** The effects of an ack: those it carries, or else what was asked, with the ids that it gives. */
export function askedEffects(write: Write, ack: Ack, states: ReadonlyMap<string, StateDocument>): Effect[] {
  if (ack.ops) return ack.ops;
  if (ack.resync) return [];
  const { version } = ack;
  const patch = write.patch?.filter((operation: Operation) => operation.op !== "test");
  const previous = states.get(write.namespace)?.version?.integrity ?? null;
  switch (write.type) {
    case "append":
      return [{ op: "append", messages: write.messages.map((message: any, index: number) => ({ ...message, id: ack.messages![index] })) }];
    case "patch":
      return write.message !== undefined && patch.length ? [{ op: "patch", message: write.message, patch }] : [];
    case "delete":
      return [{ op: "delete", messages: write.messages }];
    case "metadata-update":
      return patch?.length ? [{ op: "metadata", patch }] : [];
    case "state-update":
      if (has(write, "set")) return [{ op: "state", namespace: write.namespace, version, previous: null, data: write.set }];
      return patch ? [{ op: "state", namespace: write.namespace, version, previous, patch }] : [];
    case "floor-update":
      return patch.length ? [{ op: "floor", namespace: write.namespace, version, previous, patch }] : [];
    case "state-delete":
      return [{ op: "state", namespace: write.namespace, version, previous: null, deleted: true }];
    case "chat-delete":
    case "owner-delete":
      return [{ op: "deleted" }];
    default:
      // Batches, merges and patches of the whole chat are written out by the server.
      return [];
  }
}

/** What commits touched, in the words of `lane.targetsOf`. */
export function targetsTouched(effects: readonly Effect[]): string[] {
  return effects.flatMap((effect) => {
    switch (effect.op) {
      case "append":
        return effect.messages.map(() => "a");
      case "insert":
        return ["i"];
      case "patch":
        return [`m:${effect.message}`];
      case "delete":
        return ["d", ...effect.messages.map((id) => `m:${id}`)];
      case "metadata":
        return effect.patch.flatMap((operation) => [`M:${operation.path}`, ...(has(operation, "from") ? [`M:${operation.from}`] : [])]);
      case "state":
      case "floor":
        return [`s:${effect.namespace}`];
      default:
        return ["o:"];
    }
  });
}

/** True when two targets are the same, or one metadata path lies inside the other. */
export function overlap(one: string, other: string): boolean {
  if (one === other) return !/^[aid]$/.test(one);
  return one.startsWith("M:") && other.startsWith("M:") && (one.startsWith(`${other}/`) || other.startsWith(`${one}/`) || one === "M:" || other === "M:");
}
