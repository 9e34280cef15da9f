// What a page can import, and from which source: package.json names the same.
export const ENTRIES = {
  tellback: "index.ts",
  generations: "generation.ts",
  floors: "floors.ts",
  history: "history.ts",
  catalog: "catalog.ts",
  context: "context/index.ts",
};
