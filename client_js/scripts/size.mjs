// The SDK is at most 15 KB gzipped.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const MAX = 15 * 1024;
const size = gzipSync(readFileSync(new URL("../dist/tellback.js", import.meta.url)), { level: 9 }).length;
console.log(`dist/tellback.js: ${size} bytes gzipped, at most ${MAX}`);
if (size > MAX) process.exit(1);
