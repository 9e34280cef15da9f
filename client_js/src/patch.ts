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

/** What an operation has beside its path. */
const NEEDED = { add: "value", replace: "value", test: "value", move: "from", copy: "from", remove: "path" };

function check(operations: any, where: string): void {
  if (!Array.isArray(operations)) throw refused("patch-illegal", "A patch is an array of operations.", where);
  if (operations.length > 10_000) throw refused("patch-too-large", "A patch has at most 10000 operations.", where);
  operations.forEach((operation, index) => {
    const illegal = (why: string, member = "") => refused("patch-illegal", why, `${where}/${index}${member}`);
    if (!isObject(operation)) throw illegal("An operation is an object.");
    const kind = operation.op as keyof typeof NEEDED;
    if (typeof kind !== "string" || !has(NEEDED, kind)) throw illegal("op is add, remove, replace, move, copy or test.", "/op");
    const members = [NEEDED[kind], "path"];
    for (const member of members) if (!has(operation, member)) throw illegal(`${kind} needs ${member}.`);
    for (const member of members) if (member !== "value" && typeof operation[member] !== "string") throw illegal("A path is a string.", `/${member}`);
  });
}

/** The patched value; `value` stays as it is. Throws `patch-failed`, `patch-illegal`, `patch-too-large`. */
export function applyPatch(value: any, operations: readonly Operation[], where = "/patch"): any {
  check(operations, where);
  let copied = 0;
  operations.forEach(({ op, path: to, from: source, value: wanted }, index) => {
    const at = `${where}/${index}`;
    const path = tokensOf(to, `${at}/path`);
    const adds = op !== "replace";
    if (source !== undefined && (op === "move" || op === "copy")) {
      const from = tokensOf(source, `${at}/from`);
      wanted = read(value, from, at);
      const upwards = path.every((token, depth) => token === from[depth]);
      if (op === "move") {
        if (from.length === path.length && upwards) return;
        if (from.every((token, depth) => token === path[depth])) throw failed("A value cannot be moved into itself.", at);
      }
      if (op === "copy" || upwards) {
        copied += nodes(wanted, COPIED_NODES_MAX - copied + 1);
        if (copied > COPIED_NODES_MAX) throw refused("patch-too-large", "The copies of this patch exceed its budget.", at);
      }
      if (op === "move") value = edit(value, from, at);
    } else if (op !== "add") {
      const found = read(value, path, at);
      if (op === "test" && !equal(found, wanted)) throw failed("The test does not hold.", at);
    }
    if (op !== "test") value = op === "remove" ? edit(value, path, at) : edit(value, path, at, adds, wanted);
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

function read(value: any, tokens: string[], at: string): any {
  for (const token of tokens) value = value[step(value, token, at)];
  return value;
}

/** A copy of `value` in which `wanted` stands at a path, in place of what was there or added to it; undefined takes it out. */
function edit(value: any, tokens: string[], at: string, adds = false, wanted?: Json): any {
  const [token, ...rest] = tokens;
  if (token === undefined) return wanted ?? null;
  const isList = Array.isArray(value);
  const isLast = !rest.length;
  const isThere = !isLast || wanted === undefined;
  const key = isList && isLast && adds && token === "-" ? value.length : step(value, token, at, isThere || (isList && !adds) ? 0 : 1);
  const inner = isLast ? wanted : edit(value[key], rest, at, adds, wanted);
  const made = isList ? value.slice() : { ...value };
  if (isList) made.splice(key as number, isLast && adds ? 0 : 1, ...(inner === undefined ? [] : [inner]));
  else if (inner === undefined) delete made[key];
  else put(made, key as string, inner);
  return made;
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
