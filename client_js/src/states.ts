/* State documents of chats, characters and presets: asked for once, and then kept up to date with the commits.

   - A document is known when it stands in `states` of the replica; what travels without content is unknown until asked for.
   - Those asked for at the same moment are one question. When one of them is corrupt the others are asked for alone.

   Loading this gives owners and batches the verbs of `States`; it is `tellback/states`. */

import type { Client } from "./client.js";
import type { StateFrame, StateValue, Version } from "./frames.js";
import { applyPatch, Batch, difference, Handle, inner, type Operation, type TellbackError } from "./index.js";
import type { Change, Intent, Updater } from "./intents.js";
import type { WriteResult } from "./outbox.js";
import type { ChatDocument, StateChange, StateDocument } from "./replica.js";
import type { Writes } from "./writes.js";

const { beside, freeze, mixin, operationsOf, ownerNamed, refused, requestOf, sameFor, Unfetched, updated } = inner;

const LOG_SUFFIX = "__floor_log";

// -- documents of a replica

function change(document: ChatDocument, effect: StateChange, version: Version | null): void {
  const known: StateDocument = document.states.get(effect.namespace) ?? { version: null, data: undefined };
  document.states.set(effect.namespace, known);
  known.version = version;
  if (effect.deleted) known.data = undefined;
  else if (Object.hasOwn(effect, "data")) known.data = freeze(effect.data!);
  else if (effect.patch) known.data = freeze(applyPatch(known.data ?? {}, effect.patch as any));
  if ("skipped" in effect) known.skipped = effect.skipped!;
}

beside.install = (document, effect, again) => {
  const { states } = document;
  const { namespace, version } = effect;
  const known = states.get(namespace);
  // What happened to the log does not travel.
  if (effect.op === "floor") states.delete(namespace + LOG_SUFFIX);
  // The document was asked for and came newer than the commits.
  if (!again && known?.version && known.version.epoch === version.epoch && known.version.seq >= version.seq) return;
  if (effect.deleted || Object.hasOwn(effect, "data") || (effect.patch && known && (again || (known.version?.integrity ?? null) === effect.previous))) {
    change(document, effect, version);
  } else {
    states.delete(namespace);
  }
};

beside.show = (document, effect) => change(document, effect, document.states.get(effect.namespace)?.version ?? null);

/** @internal A document as the server sent it; null: there is none. One that is corrupt stays unknown. */
export function installState(document: ChatDocument, namespace: string, value: StateValue | null): void {
  if (value === null) document.states.set(namespace, { version: null, data: undefined });
  else if (Object.hasOwn(value, "data")) document.states.set(namespace, { version: value.version ?? null, data: freeze(value.data!), skipped: value.skipped ?? [] });
}

// -- writes

const about = (namespace: string, { states }: ChatDocument, version: Version | null) =>
  ({ namespace, version: version!, previous: states.get(namespace)?.version?.integrity ?? null });

Object.assign(beside.meanings, {
  "state-update": (write, document, version) => [{
    op: "state", ...about(write.namespace, document, version),
    ...(Object.hasOwn(write, "set") ? { data: write.set } : { patch: operationsOf(write, document.states.get(write.namespace)?.data ?? {}) }),
  }],
  "state-delete": (write, document, version) => [{ op: "state", ...about(write.namespace, document, version), deleted: true }],
  "floor-update": (write, document, version) => [{ op: "floor", ...about(write.namespace, document, version), patch: write.patch }],
} satisfies typeof beside.meanings);

/** @internal A document of a view; asked for first when it is not known. */
export function documentIn(view: ChatDocument, namespace: string): StateDocument {
  const document = view.states.get(namespace);
  if (!document) throw new Unfetched((held, done) => want(held, namespace, done));
  return document;
}

/** @internal */
export function state(namespace: string, change: Change): Intent {
  const request = { ...requestOf("delete" in change ? "state-delete" : "state-update", change), namespace };
  let seen: any;
  return {
    isFunction: "update" in change,
    parts(view) {
      seen = documentIn(view(), namespace).data;
      if ("delete" in change) return seen === undefined ? [] : [request];
      if (!("update" in change)) return [request];
      const wanted = updated(change.update, seen ?? {}, "/set");
      const operations = seen === undefined ? undefined : difference(seen, wanted);
      if (operations && !operations.length) return [];
      const isSmaller = operations && JSON.stringify(operations, big).length < JSON.stringify(wanted, big).length;
      return [{ ...request, ...(isSmaller ? { patch: operations } : { set: wanted }) }];
    },
    repeatable(view) {
      const document = view().states.get(namespace);
      return "update" in change || (document !== undefined && sameFor(change, seen, document.data));
    },
  };
}

const big = (_member: string, value: unknown) => (typeof value === "bigint" ? `${value}` : value);

// -- reading

type Waiter = (error?: TellbackError) => void;
const waiting = new WeakMap<Writes, Map<string, Waiter[]>>();

/** @internal Ask for a document; `waiter` is called when it is there, or with an error. */
export function want(held: Writes, namespace: string, waiter: Waiter): void {
  if (held.error) return waiter(held.error);
  const ofOne = waiting.get(held) ?? new Map<string, Waiter[]>();
  waiting.set(held, ofOne);
  const others = ofOne.get(namespace);
  if (others) return void others.push(waiter);
  ofOne.set(namespace, [waiter]);
  fresh.push([held, namespace]);
  if (fresh.length === 1) queueMicrotask(askTogether);
}

const fresh: [Writes, string][] = [];

function askTogether(): void {
  const asked = fresh.splice(0);
  for (const held of new Set(asked.map(([held]) => held))) ask(held, asked.filter(([one]) => one === held).map(([, namespace]) => namespace));
}

function ask(held: Writes, namespaces: readonly string[]): void {
  const tell = (namespace: string, error?: TellbackError) => {
    const ofOne = waiting.get(held)!;
    const waiters = ofOne.get(namespace) ?? [];
    ofOne.delete(namespace);
    for (const waiter of waiters) waiter(error);
  };
  // Called in the step that receives the answer: the next commit finds the document installed.
  held.handle!.client.request({ type: "state-get", owner: ownerNamed(held.address), namespaces }, (frame: StateFrame | undefined, error) => {
    if (error && namespaces.length > 1) for (const namespace of namespaces) ask(held, [namespace]);
    else if (error) tell(namespaces[0]!, held.error ?? error);
    else {
      for (const namespace of namespaces) {
        const { replica } = held;
        const value = frame!.states[namespace] ?? null;
        if (replica && !replica.document.states.has(namespace)) installState(replica.document, namespace, value);
        held.redraw();
        tell(namespace, value?.error && refused(value.error, `The state ${namespace} cannot be read.`));
      }
    }
  });
}

/** @internal A document, asked for when it is not known. */
export async function fetched(held: Writes, namespace: string): Promise<StateDocument> {
  for (;;) {
    const document = held.view().states.get(namespace);
    if (document) return document;
    await new Promise<void>((resolve, reject) => want(held, namespace, (error) => (error ? reject(error) : resolve())));
  }
}

// -- as the user holds them

/** The verbs of a state document; what they give is a promise, or nothing in a batch. */
export class StateVerbs<Done> {
  /** @internal */
  constructor(readonly namespace: string, private readonly act: (make: () => Intent) => Done) {}

  /** Change the document by a function of it (a missing one is `{}`); run again when somebody was faster. */
  update(update: Updater): Done {
    return this.act(() => state(this.namespace, { update }));
  }

  set(data: unknown): Done {
    return this.act(() => state(this.namespace, { set: data }));
  }

  /** Merge an object into the document (RFC 7386; null removes). */
  merge(data: object): Done {
    return this.act(() => state(this.namespace, { merge: data }));
  }

  patch(operations: readonly Operation[]): Done {
    return this.act(() => state(this.namespace, { patch: operations }));
  }

  delete(): Done {
    return this.act(() => state(this.namespace, { delete: true }));
  }
}

/** One state document of an owner. */
export class State extends StateVerbs<Promise<WriteResult>> {
  /** @internal */
  constructor(private readonly owner: States, namespace: string) {
    super(namespace, async (make) => owner.write(make()));
  }

  /** The document with the own writes on top, a copy; undefined when there is none. Asks the server the first time only. */
  async get(): Promise<any> {
    return structuredClone((await fetched(this.owner.subscription, this.namespace)).data);
  }
}

/** What an owner can do with its states. */
export abstract class States {
  /** @internal */
  abstract readonly client: Client;
  /** @internal */
  abstract readonly subscription: Writes;
  /** @internal */
  abstract write(intent: Intent): Promise<WriteResult>;

  state(namespace: string): State {
    return new State(this, namespace);
  }

  /** Several documents at once, undefined for one that there is not; all that there are when none is named. */
  async states(namespaces?: readonly string[]): Promise<Record<string, any>> {
    const asked = namespaces ?? Object.keys((await this.client.ask<StateFrame>({ type: "state-get", owner: ownerNamed(this.subscription.address) })).states);
    return Object.fromEntries(await Promise.all([...new Set(asked)].map(async (namespace) => [namespace, await this.state(namespace).get()])));
  }
}

declare module "./handle.js" {
  interface Handle extends Omit<States, "client" | "subscription" | "write"> {}
}
declare module "./chat.js" {
  interface Batch {
    state(namespace: string): StateVerbs<void>;
  }
}
mixin(Handle, States);
Batch.prototype.state = function (namespace) {
  return new StateVerbs(namespace, (make) => this.act(make));
};
