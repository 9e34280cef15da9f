// Writes src/frames.ts from spec/schema/*.json; with --check only says whether it is what it would write.
import { readFileSync, writeFileSync } from "node:fs";

const root = new URL("../", import.meta.url);
const target = new URL("src/frames.ts", root);

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeOf))].join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  switch (schema.type) {
    case "string": return "string";
    case "boolean": return "boolean";
    case "integer": case "number": return "number";
    case "null": return "null";
    case "array": {
      if (schema.prefixItems) return `[${schema.prefixItems.map(typeOf).join(", ")}]`;
      const item = schema.items ? typeOf(schema.items) : "Json";
      return /[ |]/.test(item) ? `(${item})[]` : `${item}[]`;
    }
    case "object":
      if (schema.properties) return shape(schema, "  ");
      return `Record<string, ${schema.additionalProperties ? typeOf(schema.additionalProperties) : "Json"}>`;
    default: return "Json";
  }
}

function shape(schema, indent) {
  const required = new Set(schema.required ?? []);
  const lines = Object.entries(schema.properties ?? {}).map(
    ([name, one]) => `${indent}${name}${required.has(name) ? "" : "?"}: ${typeOf(one)};`,
  );
  return `{\n${lines.join("\n")}\n${indent.slice(2)}}`;
}

const schemas = ["client", "server"].map((side) => JSON.parse(readFileSync(new URL(`../spec/schema/${side}.json`, root))));
const [client, server] = schemas;
const definitions = { ...client.$defs, ...server.$defs };
for (const [name, one] of Object.entries(client.$defs)) {
  if (server.$defs[name] && JSON.stringify(server.$defs[name]) !== JSON.stringify(one)) throw new Error(`two kinds of ${name}`);
}
const parts = ["// Made from spec/schema by `npm run types`; do not change by hand.", "", 'import type { Json } from "./values.js";', ""];
for (const [name, one] of Object.entries(definitions).sort()) {
  const about = (one.description ?? "").replace(/\s+/g, " ").trim();
  if (about) parts.push(`/** ${about} */`);
  parts.push(one.properties || one.type === "object" ? `export interface ${name} ${shape(one, "  ")}` : `export type ${name} = ${typeOf(one)};`, "");
}
parts.push(`export type ClientFrame = ${client.anyOf.map(typeOf).join(" | ")};`, `export type ServerFrame = ${server.anyOf.map(typeOf).join(" | ")};`, "");
const text = parts.join("\n");
if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== text) {
    console.error("src/frames.ts is not what spec/schema says: npm run types");
    process.exit(1);
  }
} else {
  writeFileSync(target, text);
}
