/* What can be told of names and ids without asking: whether they have the form that the server takes. It is `tellback/names`.
   Which names can be made, and which exist, is the server's to say. */

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
