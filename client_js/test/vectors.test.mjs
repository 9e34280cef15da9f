// Every vector gives in Node what it gives in Python.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";
import { applyPatch, difference, equal, narrating, parse, payload, run, sha256, stringify } from "../dist/vectors.js";

const folder = new URL("../../spec/vectors/", import.meta.url);

test("every vector that a client knows about", () => {
  const files = {};
  for (const path of readdirSync(folder, { recursive: true })) {
    if (path.endsWith(".json")) files[path] = readFileSync(new URL(path, folder), "utf8");
  }
  const { ran, wrong } = run(files);
  assert.deepEqual(wrong, []);
  assert.ok(Object.values(ran).reduce((sum, count) => sum + count, 0) > 400, JSON.stringify(ran));
});

test("integers of 64 bits stay the integers that they were", () => {
  for (const text of ['{"a":9007199254740993,"b":[-9223372036854775808,18446744073709551615],"c":"9007199254740993\\"9007199254740993","d":1.5e300,"e":12345678901234567.5}',
    '["\\\\",9007199254740993,"\\\\\\"9007199254740993"]']) {
    assert.ok(equal(parse(stringify(parse(text))), parse(text)));
    assert.equal(stringify(parse(text)).match(/9007199254740993/g).length, text.match(/9007199254740993/g).length);
  }
  assert.equal(stringify(parse('{"n":9007199254740993}')), '{"n":9007199254740993}');
  const patched = applyPatch(parse('{"n":9007199254740993,"mes":"a"}'), [{ op: "replace", path: "/mes", value: "b" }]);
  assert.equal(stringify(patched), '{"n":9007199254740993,"mes":"b"}');
});

test("what the server could not read is refused with its place", () => {
  const refused = (value, code, pointer) => assert.throws(() => payload(value, "/m"), (error) => error.code === code && error.pointer === pointer);
  refused({ a: [1, NaN] }, "bad-json", "/m/a/1");
  refused({ a: "\ud83d" }, "bad-json", "/m/a");
  refused({ "a/b": "\udc4d x" }, "bad-json", "/m/a~1b");
  refused({ n: 1n << 64n }, "number-range", "/m/n");
  refused({ n: 2 ** 65 }, "number-range", "/m/n");
  let deep = 1;
  for (let level = 0; level < 65; level++) deep = [deep];
  assert.throws(() => payload(deep, ""), (error) => error.code === "too-deep");
  assert.throws(() => payload({ f: () => 1 }, ""), TypeError);
  assert.deepEqual(payload({ at: new Date(0), gone: undefined, emoji: "👍" }, ""), { at: "1970-01-01T00:00:00.000Z", emoji: "👍" });
});

test("a difference leads from any value to any other, whatever the members are called", () => {
  let seed = 7;
  const draw = (below) => (seed = (seed * 1103515245 + 12345) % 2147483648) % below;
  const make = (depth) => {
    const kind = draw(depth > 2 ? 4 : 6);
    if (kind === 4) return Array.from({ length: draw(5) }, () => make(depth + 1));
    if (kind !== 5) return [null, true, draw(3), "ab"[draw(2)]][kind];
    return JSON.parse(`{${[...new Set(Array.from({ length: draw(4) }, () => ["a", "b/c", "~", "__proto__", "1", ""][draw(6)]))].map((name) => `${JSON.stringify(name)}:${JSON.stringify(make(depth + 1))}`).join(",")}}`);
  };
  for (let round = 0; round < 2000; round++) {
    const [one, other] = [make(0), make(0)];
    assert.ok(equal(applyPatch(one, difference(one, other)), other), `${JSON.stringify(one)} to ${JSON.stringify(other)}`);
  }
});

test("events have the indexes of the moment, whatever comes, goes and is changed", () => {
  let seed = 11;
  const draw = (below) => (seed = (seed * 1103515245 + 12345) % 2147483648) % below;
  const order = ["a", "b", "c"];
  const tell = narrating([...order]);
  for (let round = 0; round < 3000; round++) {
    const kind = draw(5);
    const known = order[draw(order.length)];
    const made = Array.from({ length: 1 + draw(3) }, (_, index) => `${round}-${index}`);
    if (kind < 2 || order.length < 4) {
      const after = [null, known, "nobody"][draw(3)];
      // What is there already comes again with the commits between the parts of a snapshot.
      const messages = [...made, known].map((id) => ({ id, is_user: false }));
      const told = tell([kind ? { op: "insert", after, messages } : { op: "append", messages }]);
      order.splice(!kind || after === "nobody" ? order.length : after === null ? 0 : order.indexOf(after) + 1, 0, ...made);
      assert.deepEqual(told.map(([, index, { message_id }]) => [index, message_id]), messages.map(({ id }) => [order.indexOf(id), id]));
    } else if (kind === 2) {
      const [[, index]] = tell([{ op: "patch", message: known, patch: [{ op: "replace", path: "/mes", value: "b" }] }]);
      assert.equal(index, order.indexOf(known));
    } else {
      const gone = [...new Set([known, order[draw(order.length)]])];
      const indexes = gone.map((id) => order.indexOf(id));
      const told = tell([{ op: "delete", messages: [...gone, "nobody"] }]);
      for (const id of gone) order.splice(order.indexOf(id), 1);
      assert.deepEqual(told.map(([, length, { index }]) => [length, index]), indexes.map((index) => [order.length, index]));
    }
  }
  assert.ok(order.length > 10);
});

test("what is told of one message costs the same in a long chat", () => {
  let reads = 0;
  const get = (order, name, proxy) => (reads++, Reflect.get(order, name, proxy));
  const tell = narrating(new Proxy(Array.from({ length: 10_000 }, (_, index) => `m${index}`), { get }));
  reads = 0;
  tell([{ op: "append", messages: [{ id: "new" }, { id: "newer" }] }]);
  tell([{ op: "patch", message: "m5000", patch: [{ op: "replace", path: "/mes", value: "b" }] }]);
  tell([{ op: "insert", after: "new", messages: [{ id: "between" }] }]);
  const [[, length, { index }]] = tell([{ op: "delete", messages: ["new"] }]);
  assert.deepEqual([length, index], [10_002, 10_000]);
  assert.ok(reads < 100, `${reads} reads`);
});

test("SHA-256 where a page has none of the browser's", () => {
  for (const length of [...Array(200).keys(), 1000, 65_537]) {
    const bytes = Uint8Array.from({ length }, (_, index) => (index * 31 + length) & 255);
    assert.equal(sha256(bytes), createHash("sha256").update(bytes).digest("hex"), `${length} bytes`);
  }
});
