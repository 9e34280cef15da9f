/* What a caller can meet. `code` names the cause: the server's codes, and of this package:

     conflict            somebody else changed what a write was made against; `conflict` has three exits
     generation-over     the reply has ended, whoever ended it
     outcome-unknown     the server no longer keeps the outcome of this op
     connection-lost     there is no connection and none will be made; `closeCode` says why
     session-taken-over  another connection said hello with this session
     protocol-violation  the peer does not speak tellback
     client-closed       this client was closed by its owner
     outbox              writes without an answer cannot be kept

   A lost connection alone never fails a write: the write waits and is sent again. */

import type { Conflict } from "./conflict.js";
import type { Error as ErrorFrame } from "./frames.js";

export type Retry = ErrorFrame["retry"];

/** Everything that this package throws on purpose. */
export class TellbackError extends Error {
  readonly retry: Retry = "never";
  /** JSON pointer into the request. */
  readonly pointer?: string;
  /** Number of the write. */
  readonly op?: number;
  readonly expected?: number;
  /** With `renamed`: its name now. */
  readonly to?: string;
  /** With `renamed` and `deleted`. */
  readonly chatId?: string;
  readonly nextOp?: number;
  /** With `generation-running`: which one is being written there. */
  readonly generation?: string;
  readonly closeCode?: number;
  readonly conflict?: Conflict;

  constructor(readonly code: string, readonly reason: string, facts: object = {}) {
    super(`${code}: ${reason}`);
    this.name = "TellbackError";
    Object.assign(this, facts);
  }
}

export const refused = (code: string, reason: string, pointer?: string): TellbackError =>
  new TellbackError(code, reason, pointer === undefined ? {} : { pointer });

/** The error that an `error` frame means. */
export const errorOf = ({ code, message, chat_id: chatId, next_op: nextOp, ...facts }: ErrorFrame): TellbackError =>
  new TellbackError(code, message, { ...facts, chatId, nextOp });

/** What a close code means for the caller; undefined: connect again. */
export function closed(closeCode: number, reason: string): TellbackError | undefined {
  if (closeCode < 4500 || closeCode > 4999) return undefined;
  const code = { 4501: "session-taken-over", 4502: "unauthenticated", 4503: "forbidden" }[closeCode] ?? "protocol-violation";
  return new TellbackError(code, reason || `the server closed the connection with ${closeCode}`, { closeCode });
}
