// The types that come with the package are whole, and show nothing of the inside.
import assert from "node:assert/strict";
import test from "node:test";
import ts from "typescript";

test("a program in TypeScript", () => {
  const program = ts.createProgram([new URL("usage.ts", import.meta.url).pathname], {
    noEmit: true, strict: true, target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ES2022, moduleResolution: ts.ModuleResolutionKind.Bundler,
    lib: ["lib.es2023.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"], types: [], skipDefaultLibCheck: true,
  });
  assert.deepEqual(ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`), []);
});
