// Bundles src into dist/: the SDK, the extension API beside it, and the inside for the vectors.
import { build } from "esbuild";

const src = new URL("../src/", import.meta.url).pathname;
const common = { bundle: true, format: "esm", target: "es2022", minify: true, sourcemap: true, legalComments: "none" };
const dist = new URL("../dist/", import.meta.url).pathname;
await build({ ...common, entryPoints: [`${src}index.ts`], outfile: `${dist}tellback.js` });
// The extension API stands beside the SDK and uses the same one.
const beside = { name: "beside", setup: (on) => on.onResolve({ filter: /^\.\.\/index\.js$/ }, () => ({ path: "./tellback.js", external: true })) };
await build({ ...common, entryPoints: [`${src}context/index.ts`], outfile: `${dist}context.js`, plugins: [beside] });
await build({ ...common, minify: false, entryPoints: [new URL("../test/vectors.ts", import.meta.url).pathname], outfile: `${dist}vectors.js` });
