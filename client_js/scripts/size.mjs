// The SDK does not grow unseen. 15 KB are wanted (docs/JAVASCRIPT.md); this is what it has now.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const MAX = 24 * 1024 + 512;
const size = gzipSync(readFileSync(new URL("../dist/tellback.js", import.meta.url)), { level: 9 }).length;
console.log(`dist/tellback.js: ${size} bytes gzipped, at most ${MAX}`);
if (size > MAX) process.exit(1);
