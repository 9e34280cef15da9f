// Checks src, writes its types, and bundles it into dist/: the SDK, the modules beside it, and the inside for the vectors.
import { writeFileSync } from "node:fs";
import { build } from "esbuild";
import { minify } from "terser";
import ts from "typescript";
import { ENTRIES } from "./entries.mjs";
import { insideNames } from "./names.mjs";

const root = new URL("../", import.meta.url).pathname;
const [src, dist] = [`${root}src/`, `${root}dist/`];

const { options, fileNames } = ts.parseJsonConfigFileContent(ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile).config, ts.sys, root);
const program = ts.createProgram(fileNames, options);
const problems = [...ts.getPreEmitDiagnostics(program), ...program.emit().diagnostics];
if (problems.length) {
  console.error(ts.formatDiagnosticsWithColorAndContext(problems, ts.createCompilerHost(options)));
  process.exit(1);
}

const names = insideNames(program, src, Object.values(ENTRIES));
const common = { bundle: true, format: "esm", target: "es2022", legalComments: "none", mangleProps: new RegExp(`^(${names.join("|")})$`) };
let mangleCache = {};
const inputs = {};
for (const [name, source] of Object.entries(ENTRIES)) {
  // A module beside the SDK uses the same one, and others the same of each other.
  const beside = {
    name: "beside",
    setup: (on) => on.onResolve({ filter: /^\.\.?\// }, ({ path, importer }) => {
      const other = importer && Object.keys(ENTRIES).find((one) => one !== name && new URL(path, `file://${importer}`).pathname === src + ENTRIES[one].replace(/ts$/, "js"));
      return other && { path: `./${other}.js`, external: true };
    }),
  };
  const made = await build({
    ...common, mangleCache, entryPoints: [src + source], outfile: `${dist}${name}.js`, plugins: [beside], sourcemap: "external", write: false, metafile: true,
  });
  mangleCache = made.mangleCache;
  const [map, bundle] = made.outputFiles.map(({ text }) => text);
  // Functions that stand together compress better.
  const small = await minify(bundle, { module: true, ecma: 2020, compress: { passes: 3, hoist_funs: true }, sourceMap: { content: map, url: `${name}.js.map` } });
  writeFileSync(`${dist}${name}.js`, small.code);
  writeFileSync(`${dist}${name}.js.map`, small.map);
  inputs[name] = Object.keys(made.metafile.inputs);
  const twice = inputs[name].filter((input) => Object.entries(inputs).some(([other, held]) => other !== name && held.includes(input)));
  if (twice.length) throw new Error(`${twice} would be in two modules: import what is shared from index.js`);
}
await build({ ...common, mangleCache, sourcemap: true, entryPoints: [`${root}test/vectors.ts`], outfile: `${dist}vectors.js` });
if (process.argv.includes("--names")) console.log(JSON.stringify(mangleCache, null, 1));
