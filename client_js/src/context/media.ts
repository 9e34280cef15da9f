/* Attachments of a message: which there are, how they are shown, which one is chosen. Works on plain messages, in place. */

const asArray = (value: any): any[] => (Array.isArray(value) ? value : value === undefined || value === null ? [] : [value]);
const usable = (url: unknown): url is string => typeof url === "string" && url !== "";

/** Make `extra.media` and `extra.files` arrays of all attachments, in place, no URL twice. */
export function ensureMessageMediaIsArray(message: any): void {
  const extra = message.extra;
  if (typeof extra !== "object" || extra === null) return;
  if ("file" in extra) {
    extra.files = [...asArray(extra.files), ...(extra.file ? [extra.file] : [])];
    delete extra.file;
  }
  if (extra.media !== undefined && extra.media !== null && !Array.isArray(extra.media)) extra.media = extra.media ? [extra.media] : [];
  const { image } = extra;
  if (Array.isArray(extra.image_swipes)) {
    const urls = extra.image_swipes.filter(usable);
    delete extra.image_swipes;
    extra.media = [...asArray(extra.media), ...urls.map((url: string) => ({ type: "image", url }))];
    if (urls.length) extra.media_display = "gallery";
  }
  for (const type of ["image", "video"]) {
    if (!(type in extra)) continue;
    const url = extra[type];
    delete extra[type];
    extra.media = [...asArray(extra.media), ...(usable(url) ? [{ type, url }] : [])];
  }
  if (!Array.isArray(extra.media)) return;
  extra.media = extra.media.filter((one: any, index: number, all: any[]) => typeof one?.url !== "string" || all.findIndex((other) => other?.url === one.url) === index);
  const chosen = extra.media.findIndex((one: any) => one?.url === image);
  if (image && chosen >= 0 && extra.media_display === "gallery") extra.media_index = chosen;
}

/** `list` or `gallery`: the message's own wish, else `usual`. */
export function getMediaDisplay(message: any, usual = "list"): string {
  const value = message.extra?.media_display || usual;
  return value === "gallery" ? value : "list";
}

/** Which attachment is chosen; 0 when the message says nothing usable. */
export function getMediaIndex(message: any): number {
  const { media, media_index: index } = message.extra ?? {};
  return Array.isArray(media) && Number.isInteger(index) && index >= 0 && index < media.length ? index : 0;
}
