/* Extension prompts, in this context's memory. */

import { Base } from "./base.js";

export class Prompts extends Base {
  /** Put a text into the prompt, in this context's memory; an empty one takes it away. */
  setExtensionPrompt(key: string, value: string, position = 0, depth = 0, scan = false, role = 0, filter: (() => unknown) | null = null): void {
    const { [key]: _, ...others } = this.extensionPrompts;
    this.extensionPrompts = Object.freeze(value ? { ...others, [key]: Object.freeze({ value, position, depth, scan, role, filter }) } : others);
  }

  /** Forget the extension prompts; with `clearData` also show no message until a chat is read again. Deletes nothing. */
  async clearChat({ clearData = false } = {}): Promise<void> {
    this.extensionPrompts = Object.freeze({});
    if (clearData) this.shown = false;
  }
}
