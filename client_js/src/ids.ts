/* Names and ids, as far as a client needs them before the server says. */

/** `bytes` random bytes in hexadecimal. */
export function randomId(bytes: number): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const newMessageId = (): string => randomId(8);
export const newSession = (): string => randomId(16);

export const isSession = (value: string): boolean => /^[!-~]{16,64}$/.test(value) && !value.includes("\n");
export const isNamespace = (value: string): boolean => /^(?!.*luker-state)[a-z0-9._-]{1,96}$/.test(value);
export const isMessageId = (value: unknown): boolean =>
  typeof value === "string" && value.length > 0 && [...value].length <= 128 && !/[\u0000-\u001f\u007f]/.test(value);

export type ChatAddress =
  | { kind: "character"; character: string; chat: string }
  | { kind: "group"; chat: string }
  | { kind: "id"; chat_id: string };

/** The parts of a chat's address, or null. */
export function chatAddress(address: string): ChatAddress | null {
  const colon = address.indexOf(":");
  const kind = address.slice(0, colon);
  const name = address.slice(colon + 1);
  if (!name || colon < 0) return null;
  if (kind === "group") return isName(name) ? { kind, chat: name } : null;
  if (kind === "id") return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(name) ? { kind, chat_id: name } : null;
  const slash = name.indexOf("/");
  const [character, chat] = [name.slice(0, Math.max(slash, 0)), name.slice(slash + 1)];
  return kind === "character" && isName(character) && isName(chat) ? { kind, character, chat } : null;
}

/** What a name cannot leave its folder by. Which names can be made is the server's to say. */
const isName = (name: string): boolean => name !== "" && !/^\.{1,2}$|[/\u0000]/.test(name);

export type OwnerName = { chat?: string; character?: string; preset?: string };

/** An owner by its one text: a chat's address, `character:<character>` or `preset:<folder>/<preset>`. */
export function ownerNamed(name: string): OwnerName {
  if (name.startsWith("preset:")) return { preset: name.slice(7) };
  if (name.startsWith("character:") && !name.includes("/")) return { character: name.slice(10) };
  return { chat: name };
}

export const textOf = (owner: OwnerName | undefined): string =>
  owner?.chat ?? (owner?.character !== undefined ? `character:${owner.character}` : owner?.preset !== undefined ? `preset:${owner.preset}` : "");
