/* RFC 6902 and RFC 7386. Nothing that was handed in is changed: what a patch leaves alone is shared with its result. */

import { refused } from "./errors.js";
import { equal, escaped, has, isObject, put, type Json, type JsonObject } from "./values.js";

export interface Operation {
  op: "add" | "remove" | "replace" | "move" | "copy" | "test";
  path: string;
  from?: string;
  value?: any;
}

const COPIED_NODES_MAX = 200_000;

/** The parts of a JSON pointer. */
export function tokensOf(pointer: string, where = ""): string[] {
  if (pointer === "") return [];
  if (pointer.length > 4096) throw refused("patch-too-large", "A path has at most 4096 characters.", where);
  if (pointer[0] !== "/" || /~(?![01])/.test(pointer)) throw refused("patch-illegal", "A path begins with a slash, and ~ stands only in ~0 and ~1.", where);
  const tokens = pointer.slice(1).split("/");
  if (tokens.length > 64) throw refused("patch-too-large", "A path has at most 64 parts.", where);
  return tokens.map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function check(operations: any, where: string): void {
  if (!Array.isArray(operations)) throw refused("patch-illegal", "A patch is an array of operations.", where);
  if (operations.length > 10_000) throw refused("patch-too-large", "A patch has at most 10000 operations.", where);
  operations.forEach((operation, index) => {
    const at = `${where}/${index}`;
    const illegal = (why: string, member = "") => refused("patch-illegal", why, at + member);
    if (!isObject(operation)) throw illegal("An operation is an object.");
    const kind = has(operation, "op") ? operation.op : undefined;
    const relocates = kind === "move" || kind === "copy";
    if (kind === "add" || kind === "replace" || kind === "test") {
      if (!has(operation, "value")) throw illegal(`${kind} needs a value.`);
    } else if (relocates) {
      if (!has(operation, "from")) throw illegal(`${kind} needs from.`);
    } else if (kind !== "remove") throw illegal("op is add, remove, replace, move, copy or test.", "/op");
    if (!has(operation, "path")) throw illegal("An operation needs a path.");
    if (typeof operation.path !== "string") throw illegal("A path is a string.", "/path");
    if (relocates && typeof operation.from !== "string") throw illegal("A path is a string.", "/from");
  });
}

/** The patched value; `value` stays as it is. Throws `patch-failed`, `patch-illegal`, `patch-too-large`. */
export function applyPatch(value: any, operations: readonly Operation[], where = "/patch"): any {
  check(operations, where);
  let copied = 0;
  operations.forEach((operation, index) => {
    const at = `${where}/${index}`;
    const path = tokensOf(operation.path, `${at}/path`);
    switch (operation.op) {
      case "test":
        if (!equal(at_(value, path, at), operation.value)) throw failed("The test does not hold.", at);
        break;
      case "remove":
        value = remove(value, path, at);
        break;
      case "replace":
        at_(value, path, at);
        value = set(value, path, operation.value, at, false);
        break;
      case "add":
        value = set(value, path, operation.value, at, true);
        break;
      default: {
        const from = tokensOf(operation.from!, `${at}/from`);
        const found = at_(value, from, at);
        const upwards = path.every((token, depth) => token === from[depth]);
        if (operation.op === "move") {
          if (from.length === path.length && upwards) return;
          if (from.every((token, depth) => token === path[depth])) throw failed("A value cannot be moved into itself.", at);
        }
        if (operation.op === "copy" || upwards) {
          copied += nodes(found, COPIED_NODES_MAX - copied + 1);
          if (copied > COPIED_NODES_MAX) throw refused("patch-too-large", "The copies of this patch exceed its budget.", at);
        }
        if (operation.op === "move") value = remove(value, from, at);
        value = set(value, path, found, at, true);
      }
    }
  });
  return value;
}

const failed = (why: string, at: string) => refused("patch-failed", why, at);

function nodes(value: any, limit: number): number {
  let count = 1;
  const waiting = [value];
  while (waiting.length && count < limit) {
    const one = waiting.pop();
    if (typeof one === "string") count += one.length >> 6;
    else if (typeof one === "object" && one) {
      const inner = Object.values(one);
      count += inner.length;
      for (const value of inner) waiting.push(value);
    }
  }
  return count;
}

function step(value: any, token: string, at: string, end = 0): string | number {
  if (Array.isArray(value)) {
    if (!/^(0|[1-9]\d{0,11})$/.test(token) || +token >= value.length + end) throw failed(`The array has no index ${token.slice(0, 32)}.`, at);
    return +token;
  }
  if (!isObject(value)) throw failed(`${token.slice(0, 64)} points into a value that is no object or array.`, at);
  if (!end && !has(value, token)) throw failed(`There is no member ${token.slice(0, 64)}.`, at);
  return token;
}

function at_(value: any, tokens: string[], at: string): any {
  for (const token of tokens) value = value[step(value, token, at)];
  return value;
}

/** A copy of `value` in which `act` changed a copy of the container that holds the last token. */
function within(value: any, tokens: string[], at: string, act: (container: any, last: string) => void): any {
  const token = tokens[0]!;
  if (tokens.length > 1) {
    const key = step(value, token, at);
    const inner = within(value[key], tokens.slice(1), at, act);
    const made = Array.isArray(value) ? value.slice() : { ...value };
    if (Array.isArray(made)) made[key as number] = inner;
    else put(made, key as string, inner);
    return made;
  }
  const made = Array.isArray(value) ? value.slice() : isObject(value) ? { ...value } : value;
  act(made, token);
  return made;
}

function set(value: any, tokens: string[], wanted: Json, at: string, adds: boolean): any {
  if (!tokens.length) return wanted;
  return within(value, tokens, at, (container, last) => {
    if (Array.isArray(container)) {
      const index = adds && last === "-" ? container.length : (step(container, last, at, adds ? 1 : 0) as number);
      container.splice(index, adds ? 0 : 1, wanted);
    } else {
      step(container, last, at, 1);
      put(container, last, wanted);
    }
  });
}

function remove(value: any, tokens: string[], at: string): any {
  if (!tokens.length) return null;
  return within(value, tokens, at, (container, last) => {
    const key = step(container, last, at);
    if (Array.isArray(container)) container.splice(key as number, 1);
    else delete container[key];
  });
}

/** Operations that lead from `old` to `wanted`: members one by one, and of an array the middle that differs. */
export function difference(old: any, wanted: any, path = "", operations: Operation[] = []): Operation[] {
  if (old === wanted) return operations;
  if (isObject(old) && isObject(wanted)) {
    for (const member of Object.keys(old)) {
      if (!has(wanted, member)) operations.push({ op: "remove", path: `${path}/${escaped(member)}` });
    }
    for (const [member, value] of Object.entries(wanted)) {
      const inner = `${path}/${escaped(member)}`;
      if (has(old, member)) difference(old[member], value, inner, operations);
      else operations.push({ op: "add", path: inner, value });
    }
  } else if (Array.isArray(old) && Array.isArray(wanted)) {
    const shorter = Math.min(old.length, wanted.length);
    let start = 0;
    while (start < shorter && equal(old[start], wanted[start])) start++;
    let end = 0;
    while (end < shorter - start && equal(old.at(-1 - end), wanted.at(-1 - end))) end++;
    const inside = shorter - end;
    for (let index = start; index < inside; index++) difference(old[index], wanted[index], `${path}/${index}`, operations);
    for (let index = old.length - end - 1; index >= inside; index--) operations.push({ op: "remove", path: `${path}/${index}` });
    for (let index = inside; index < wanted.length - end; index++) operations.push({ op: "add", path: `${path}/${index}`, value: wanted[index] });
  } else if (!equal(old, wanted)) operations.push({ op: "replace", path, value: wanted });
  return operations;
}

/** An RFC 7386 merge, written out as operations on `target`. */
export function mergeToPatch(target: any, merge: any, path = ""): Operation[] {
  if (!isObject(merge) || !isObject(target)) return [{ op: "replace", path, value: withoutNulls(merge) }];
  return Object.entries(merge).flatMap(([member, wanted]): Operation[] => {
    const inner = `${path}/${escaped(member)}`;
    const there = has(target, member);
    if (wanted === null) return there ? [{ op: "remove", path: inner }] : [];
    if (isObject(wanted) && there && isObject(target[member])) return mergeToPatch(target[member], wanted, inner);
    return there && equal(target[member], wanted) ? [] : [{ op: "add", path: inner, value: withoutNulls(wanted) }];
  });
}

function withoutNulls(value: Json): Json {
  if (!isObject(value)) return value;
  const made: JsonObject = {};
  for (const [member, inner] of Object.entries(value)) if (inner !== null) put(made, member, withoutNulls(inner));
  return made;
}
