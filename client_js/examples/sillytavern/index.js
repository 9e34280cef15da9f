// An extension of SillyTavern (1.19): the open chat is saved and kept in step by tellback, which serves the same folder.
// SillyTavern's own code goes on as it is: its save of the whole chat is caught on the page, and what changed travels instead.
// What other tabs and programs store is drawn as it comes. docs/JAVASCRIPT.md tells how to install it.
import { connect } from "tellback";
import { incrementalSave } from "../incremental_save.js";

const SERVER = localStorage.getItem("tellback") ?? `ws://${location.hostname}:8765/ws`;
const ADDRESSES = { "/api/chats/": ({ avatar_url, file_name }) => chatOf(avatar_url, file_name), "/api/chats/group/": ({ id }) => `group:${id}` };
const now = () => SillyTavern.getContext();
const chatOf = (avatar, name) => `character:${avatar.replace(".png", "")}/${name}`;
const { eventSource, eventTypes } = now();
export const connected = connect(SERVER);

// The open chat: its address, and what saves it once tellback has opened it.
let shown = { address: undefined, store: undefined };

async function show() {
  const { chatId, characterId, groupId, characters, chat } = now();
  const address = chatId && (groupId ? `group:${chatId}` : characters[characterId] && chatOf(characters[characterId].avatar, chatId));
  shown.store?.live.close();
  const mine = (shown = { address, store: undefined });
  if (!address) return;
  const { integrity } = now().chatMetadata;
  // Where tellback does not know the chat, SillyTavern saves it as ever.
  const page = { chat, create: false, isShown: () => shown === mine, changed: draw, get metadata() { return now().chatMetadata; } };
  const store = await incrementalSave(await connected, address, page);
  if (shown !== mine) return store.live.close();
  mine.store = store;
  // SillyTavern has just made one for a chat that had none.
  store.metadata.integrity ??= integrity;
}

// Texts in place, new messages behind the others; everything anew when messages came between or went.
async function draw(added, altered) {
  const { chat, updateMessageBlock, addOneMessage, printMessages } = now();
  const drawn = document.querySelectorAll("#chat .mes").length;
  const inPlace = chat.length - added.length === Number(document.querySelector("#chat .mes:last-child")?.getAttribute("mesid") ?? -1) + 1;
  if (!drawn || !inPlace || added.some((message, index) => chat[chat.length - added.length + index] !== message)) {
    document.querySelector("#chat").replaceChildren();
    return printMessages();
  }
  for (const message of altered) updateMessageBlock(chat.indexOf(message), message);
  for (const message of added) addOneMessage(message);
}

async function sent({ body }) {
  if (typeof body === "string") return JSON.parse(body);
  return new Response(new Blob([body]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

const native = window.fetch;
window.fetch = async (resource, options) => {
  const [, folder, verb] = /^(\/api\/chats\/(?:group\/)?)(save|get)$/.exec(resource) ?? [];
  const { store, address } = shown;
  if (!verb || !store) return native(resource, options);
  const body = await sent(options);
  const isShown = ADDRESSES[folder](body) === address;
  // It is about to be loaded anew: until it is opened again, nothing in the array tells what was deleted.
  if (verb === "get" && isShown) {
    store.live.close();
    shown = { address: undefined, store: undefined };
  }
  // Branches, checkpoints and other chats are files that SillyTavern makes: tellback takes them over as they are.
  if (verb === "get" || !isShown || body.chat.length !== store.chat.length + 1) return native(resource, options);
  try {
    await store.save();
    return Response.json({ ok: true });
  } catch (error) {
    return Response.json({ error: String(error) }, { status: 409 });
  }
};

eventSource.on(eventTypes.CHAT_CHANGED, () => void show().catch(console.error));
