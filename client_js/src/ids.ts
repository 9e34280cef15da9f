/* Names and ids, as far as a client needs them before the server says. */

/** `bytes` random bytes in hexadecimal. */
export function randomId(bytes: number): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const newMessageId = (): string => randomId(8);
export const newSession = (): string => randomId(16);

export type OwnerName = { chat?: string; character?: string; preset?: string };

/** An owner by its one text: a chat's address, `character:<character>` or `preset:<folder>/<preset>`. */
export function ownerNamed(name: string): OwnerName {
  if (name.startsWith("preset:")) return { preset: name.slice(7) };
  if (name.startsWith("character:") && !name.includes("/")) return { character: name.slice(10) };
  return { chat: name };
}

export const textOf = (owner: OwnerName | undefined): string =>
  owner?.chat ?? (owner?.character !== undefined ? `character:${owner.character}` : owner?.preset !== undefined ? `preset:${owner.preset}` : "");
