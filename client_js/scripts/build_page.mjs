// Builds page/ into the server's package: hashed names, so that a browser keeps them for ever and never mixes two builds.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const page = new URL("../page/", import.meta.url).pathname;
const web = new URL("../../server/tellback_server/web/", import.meta.url).pathname;

const { outputFiles } = await build({
  entryPoints: [`${page}main.js`, `${page}page.css`], outdir: web, bundle: true, write: false, format: "esm", target: "es2022", minify: true,
  legalComments: "none",
});
rmSync(web, { recursive: true, force: true });
mkdirSync(web, { recursive: true });
let html = readFileSync(`${page}index.html`, "utf8");
const assets = [...outputFiles.map((file) => [file.path.split("/").pop(), file.contents]), ["icon.svg", readFileSync(`${page}icon.svg`)]];
for (const [name, contents] of assets) {
  const hash = createHash("sha256").update(contents).digest("hex").slice(0, 12);
  const hashed = name.replace(/\.(\w+)$/, `-${hash}.$1`);
  writeFileSync(web + hashed, contents);
  html = html.replaceAll(`/${name}`, `/${hashed}`);
}
writeFileSync(`${web}index.html`, html);
console.log(`built ${assets.length + 1} files into server/tellback_server/web/`);
