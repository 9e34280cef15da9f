// The SDK alone has at most 15 KB gzipped, the modules beside it aside.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { ENTRIES } from "./entries.mjs";

const MAX = 15 * 1024;
const sizes = Object.keys(ENTRIES).map((name) => [name, gzipSync(readFileSync(new URL(`../dist/${name}.js`, import.meta.url)), { level: 9 }).length]);
for (const [name, size] of sizes) console.log(`dist/${name}.js: ${size} bytes gzipped`);
if (sizes[0][1] > MAX) {
  console.error(`dist/tellback.js has more than ${MAX} bytes: move what not every page needs into a module beside it`);
  process.exit(1);
}
