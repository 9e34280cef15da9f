/* JSON values, exact where JavaScript can be.

   - An integer that a double cannot hold becomes a bigint, and is written as the integer that it was. Nothing is rounded.
   - What is stored is checked first: what the server would refuse as unreadable gets a pointer to its place.
   - What is handed out is frozen; whoever wants to change it changes a copy. */

import { refused } from "./errors.js";

export type Json = null | boolean | number | bigint | string | Json[] | JsonObject;
export interface JsonObject {
  [member: string]: Json;
}

const MARK = `\u0000${Math.random()}:`;
const QUOTED = JSON.stringify(MARK).slice(0, -1);
const DEPTH_MAX = 64;

/** Text to value. */
export function parse(text: string): any {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  let marked = "";
  for (let at = 0; at < text.length; ) {
    let quote = text.indexOf('"', at);
    if (quote < 0) quote = text.length;
    marked += text.slice(at, quote).replace(/-?\d+(\.\d+)?([eE][-+]?\d+)?/g, (number, point, exponent) =>
      point || exponent || Number.isSafeInteger(+number) ? number : `${QUOTED}${number}"`,
    );
    at = quote + 1;
    for (; at < text.length && text[at] !== '"'; at++) if (text[at] === "\\") at++;
    marked += text.slice(quote, ++at);
  }
  return JSON.parse(marked, (_key, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

/** Value to text. */
export function stringify(value: unknown): string {
  let hasBig = false;
  const text = JSON.stringify(value, (_key, inner) => (typeof inner === "bigint" ? ((hasBig = true), MARK + inner) : inner));
  return hasBig ? text.replaceAll(new RegExp(`${QUOTED.replace(/[\\.]/g, "\\$&")}(-?\\d+)"`, "g"), "$1") : text;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const has = (value: object, member: string): boolean => Object.hasOwn(value, member);

/** Set a member, whatever it is called. */
export function put(object: JsonObject, member: string, value: Json): void {
  if (member === "__proto__") Object.defineProperty(object, member, { value, enumerable: true, configurable: true, writable: true });
  else object[member] = value;
}

/** Freeze at every depth. */
export function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) freeze(inner);
  }
  return value;
}

/** A copy that may be changed. */
export const copy = <T>(value: T): T => structuredClone(value);

export function equal(one: any, other: any): boolean {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) {
    // A bigint and a number are equal when they are the same number.
    return typeof one !== typeof other && /^(bigint|number)(bigint|number)$/.test(typeof one + typeof other) && one == other;
  }
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const members = Object.keys(one);
  return members.length === Object.keys(other).length && members.every((member) => has(other, member) && equal(one[member], other[member]));
}

const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;

/** The text as it is. Throws `bad-json` when it holds half of a surrogate pair. */
export function text(value: string, pointer: string): string {
  if (LONE.test(value)) throw refused("bad-json", "The text holds half of a surrogate pair (a cut emoji).", pointer);
  return value;
}

/** A frozen copy of what is to be stored, as JSON holds it. Throws what the server would refuse as unreadable. */
export function payload(value: any, pointer: string, depth = 0): any {
  if (typeof value?.toJSON === "function") value = value.toJSON();
  switch (typeof value) {
    case "string":
      return text(value, pointer);
    case "boolean":
      return value;
    case "number":
    case "bigint":
      if (typeof value === "number" && !Number.isFinite(value)) throw refused("bad-json", `${value} is no JSON.`, pointer);
      if ((typeof value === "bigint" || (Number.isInteger(value) && Math.abs(value) < 1e21)) && (value >= 1n << 64n || value < -(1n << 63n))) {
        throw refused("number-range", "An integer has more than 64 bits.", pointer);
      }
      return value;
    case "object": {
      if (value === null) return value;
      if (depth >= DEPTH_MAX) throw refused("too-deep", `The value is nested deeper than ${DEPTH_MAX} levels.`, pointer);
      if (Array.isArray(value)) {
        return Object.freeze(value.map((inner, index) => payload(inner === undefined ? null : inner, `${pointer}/${index}`, depth + 1)));
      }
      const made: JsonObject = {};
      for (const [member, inner] of Object.entries(value)) {
        if (inner === undefined) continue;
        const at = `${pointer}/${escaped(member)}`;
        put(made, text(member, at), payload(inner, at, depth + 1));
      }
      return Object.freeze(made);
    }
    default:
      throw new TypeError(`${typeof value} is no JSON (at ${pointer})`);
  }
}

/** A member's name as a part of a JSON pointer. */
export const escaped = (member: string): string => member.replaceAll("~", "~0").replaceAll("/", "~1");
