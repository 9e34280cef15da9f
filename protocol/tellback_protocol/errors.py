"""What can be wrong with a request, as data: code, retry class, sentence, field pointer.

    Refused                 the request is not carried out
        code in ERRORS      decides the retry class and whether the answer is an *outcome* (BEHAVIOUR O4)

Rules of this module:
- A code names the cause, the retry class tells the client what to do, the sentence tells a person.
- An outcome uses up the op's number and is stored; everything else can be sent again with the same number.
- Nothing here ever carries a path, a stack trace or another user's data.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Retry = Literal["never", "now", "backoff", "after-auth", "after-sync"]


class ErrorKind(NamedTuple):
    """`outcome`: stored and counted when the frame's owner and next op number could be read."""

    retry: Retry
    outcome: bool
    meaning: str


ERRORS: dict[str, ErrorKind] = {
    # The frame itself.
    "bad-json": ErrorKind("never", False, "The message is not one JSON object in UTF-8."),
    "bad-frame": ErrorKind("never", True, "A field is missing, has the wrong type or an illegal value."),
    "unknown-type": ErrorKind("never", False, "The server does not know this type of frame."),
    "binary-frame": ErrorKind("never", False, "Frames are text."),
    "too-large": ErrorKind("never", False, "A limit in bytes or items, as told in welcome, was exceeded."),
    "too-deep": ErrorKind("never", False, "A payload is nested deeper than the limit."),
    "number-range": ErrorKind("never", True, "A number is larger than every reader can hold."),
    # The connection.
    "hello-required": ErrorKind("never", False, "The first frame must be hello."),
    "hello-repeated": ErrorKind("never", False, "hello was already accepted on this connection."),
    "unsupported-protocol": ErrorKind("never", False, "The server speaks another version of the protocol."),
    "session-invalid": ErrorKind("never", False, "The session id is not usable."),
    "session-taken-over": ErrorKind("never", False, "Another connection said hello with this session."),
    "unauthenticated": ErrorKind("after-auth", False, "The token is missing, unknown or expired."),
    "forbidden": ErrorKind("never", False, "This user may not do that."),
    # The owner.
    "not-found": ErrorKind("never", True, "There is no such chat, or it belongs to somebody else."),
    "name-illegal": ErrorKind("never", True, "The name cannot be used."),
    "exists": ErrorKind("never", True, "The name is taken."),
    "renamed": ErrorKind("never", False, "The owner has another name now, told in `to`."),
    "deleted": ErrorKind("never", False, "The owner is in the trash; `chat_id` says what to restore."),
    "create-with-since": ErrorKind("never", False, "create works only with since null."),
    "not-open": ErrorKind("never", False, "This connection does not have that open."),
    "read-only": ErrorKind("after-sync", False, "The chat is damaged and served read-only until it is repaired."),
    "unreadable": ErrorKind("backoff", False, "The file exists and cannot be read now."),
    "unsafe-file": ErrorKind("never", False, "The path is a link or no regular file and is not followed."),
    # The base.
    "base-required": ErrorKind("never", True, "A write names the version it was made against."),
    "base-illegal": ErrorKind("never", True, "This base cannot be used with this request."),
    "parent-refused": ErrorKind("never", True, "The op that this base points to was refused."),
    # The op number.
    "op-required": ErrorKind("never", False, "A write carries its op number."),
    "op-gap": ErrorKind("after-sync", False, "An op before this one has not arrived."),
    "op-mismatch": ErrorKind("never", False, "This op number was used for another request."),
    "op-forgotten": ErrorKind("never", False, "The outcome of this op is no longer kept."),
    # What is asked.
    "message-unknown": ErrorKind("never", True, "The chat has no message with this id or index."),
    "message-illegal": ErrorKind("never", True, "A message is a JSON object with a usable id, if it has one."),
    "message-id-taken": ErrorKind("never", True, "The chat already has a message with this id."),
    "id-immutable": ErrorKind("never", True, "The id of a message cannot be changed."),
    "swipe-unknown": ErrorKind("never", True, "The message has no swipe with this ordinal."),
    "swipe-illegal": ErrorKind("never", True, "The message or the content is not of the shape that swipes need."),
    "swipe-last": ErrorKind("never", True, "The only swipe of a message cannot be deleted."),
    "floor-state": ErrorKind("never", True, "The namespace is a floor state: it is written with floor-update."),
    "patch-illegal": ErrorKind("never", True, "The patch is not RFC 6902."),
    "patch-failed": ErrorKind("never", True, "An operation of the patch does not fit the document."),
    "patch-too-large": ErrorKind("never", False, "The patch or its result exceeds a limit."),
    "namespace-illegal": ErrorKind("never", True, "The namespace cannot be used."),
    "namespace-reserved": ErrorKind("never", True, "Only the server writes this namespace."),
    "state-corrupt": ErrorKind("after-sync", False, "The state's file cannot be read as JSON and is kept as it is."),
    # Generations.
    "generation-unknown": ErrorKind("never", True, "The chat has no such generation."),
    "generation-exists": ErrorKind("never", True, "The id was used for another generation."),
    "generation-running": ErrorKind("never", True, "Another generation, told in `generation`, is being written there."),
    "generation-ended": ErrorKind("never", True, "The generation has ended; `state` says how."),
    "generation-gap": ErrorKind("now", False, "Text before this is missing; send it again from `expected` on."),
    "generation-mismatch": ErrorKind("never", True, "This is not the text that the server has."),
    "bad-offset": ErrorKind("never", False, "An offset lies inside a surrogate pair."),
    "upstream-unknown": ErrorKind("never", True, "The server knows no model server of this name."),
    "not-producer": ErrorKind("never", True, "Another session produces the text of this generation."),
    "backup-unknown": ErrorKind("never", True, "The chat has no backup of this name."),
    "backup-damaged": ErrorKind("never", True, "The backup is not what was written; another may be whole."),
    "version-unknown": ErrorKind("never", False, "The history does not reach this version."),
    "unsupported": ErrorKind("never", True, "The server does not offer this yet."),
    # The server.
    "overloaded": ErrorKind("backoff", False, "Too much is waiting; nothing was stored."),
    "storage-failed": ErrorKind("backoff", False, "The disk failed; whether the op is stored is not known."),
    "storage-full": ErrorKind("backoff", False, "The disk is full; nothing was stored."),
    "storage-unavailable": ErrorKind("backoff", False, "The store cannot be reached now; nothing was changed."),
    "shutting-down": ErrorKind("backoff", False, "The server is stopping; nothing was stored."),
    "internal": ErrorKind("backoff", False, "The server met a fault of its own."),
}


class Refused(Exception):
    """A request that is not carried out. Raised by the pure layers, answered by the shells."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        pointer: str | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        if code not in ERRORS:
            raise AssertionError(f"unknown error code {code!r}")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.pointer = pointer
        """JSON pointer into the frame, or None when no single field is at fault."""
        self.details = details
        """Further fields of the error frame, such as `expected` of `op-gap`."""

    @property
    def retry(self) -> Retry:
        return ERRORS[self.code].retry

    @property
    def is_outcome(self) -> bool:
        return ERRORS[self.code].outcome

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def illegal(code: str, problem: str, pointer: str) -> Refused:
    """A refusal that says what is wrong with a name or id; `problem` is in the words of `ids`."""
    return Refused(code, f"{problem[0].upper()}{problem[1:]}.", pointer=pointer)
