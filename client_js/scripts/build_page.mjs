// Builds page/ into the server's package: hashed names, so that a browser keeps them for ever and never mixes two builds.
// A server that starts meanwhile finds one build or the other: the page comes after what it names, and what is old goes last.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const page = new URL("../page/", import.meta.url).pathname;
const web = new URL("../../server/tellback_server/web/", import.meta.url).pathname;

const { outputFiles } = await build({
  entryPoints: [`${page}main.js`, `${page}savings.js`, `${page}page.css`], outdir: web, bundle: true, write: false, format: "esm", target: "es2022", minify: true,
  legalComments: "none", ignoreAnnotations: true, alias: { tellback: new URL("../src/index.ts", import.meta.url).pathname },
});
mkdirSync(web, { recursive: true });
const pages = new Map(["savings.html", "index.html"].map((name) => [name, readFileSync(page + name, "utf8")]));
const kept = [...pages.keys()];
const assets = [...outputFiles.map((file) => [file.path.split("/").pop(), file.contents]), ["icon.svg", readFileSync(`${page}icon.svg`)]];
for (const [name, contents] of assets) {
  const hash = createHash("sha256").update(contents).digest("hex").slice(0, 12);
  const hashed = name.replace(/\.(\w+)$/, `-${hash}.$1`);
  writeFileSync(web + hashed, contents);
  kept.push(hashed);
  for (const [at, html] of pages) pages.set(at, html.replaceAll(`"/${name}"`, `"/${hashed}"`));
}
for (const [at, html] of pages) {
  writeFileSync(`${web}${at}.new`, html);
  renameSync(`${web}${at}.new`, web + at);
}
for (const name of readdirSync(web)) if (!kept.includes(name)) rmSync(web + name, { recursive: true });
console.log(`built ${kept.length} files into server/tellback_server/web/`);
