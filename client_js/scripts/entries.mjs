// What a page can import, and from which source: package.json names the same.
export const ENTRIES = {
  tellback: "index.ts",
  states: "states.ts",
  generations: "generation.ts",
  swipes: "swipes.ts",
  floors: "floors.ts",
  history: "history.ts",
  catalog: "catalog.ts",
  life: "life.ts",
  memory: "memory.ts",
  names: "names.ts",
  context: "context/index.ts",
};
