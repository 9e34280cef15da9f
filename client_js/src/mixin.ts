/** Give a class the verbs of another one. */
export function mixin(target: { prototype: object }, source: { prototype: object }): void {
  const { constructor: _, ...verbs } = Object.getOwnPropertyDescriptors(source.prototype);
  Object.defineProperties(target.prototype, verbs as PropertyDescriptorMap);
}
