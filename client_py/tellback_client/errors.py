"""What a caller of this package can meet, as one tree.

    TellbackError
        RefusedError            the server said no; code, retry class and pointer say why
            NotFoundError       no such chat (or it is somebody else's)
            RenamedError        it has another name now
            DeletedError        it is in the trash
            ReadOnlyError       the chat is damaged and served read-only
            ForbiddenError      this user may not do that
            UnauthenticatedError  the token is missing, unknown or expired
        ConflictError           somebody else changed what this write was made against; it has three exits
        GenerationOver          the reply has ended, whoever ended it
        OutcomeUnknownError     the server no longer keeps the outcome of this op
        ConnectionLost          there is no connection and none will be made; the cause is in `reason`
            SessionTakenOver    another connection said hello with this session
            ProtocolViolation   the peer does not speak tellback
        ClientClosed            this client was closed by its owner
        OutboxError             the file of unacknowledged writes cannot be used
            OutboxInUse         another process holds it
            OutboxCorrupt       it is damaged before its end

Rules of this module:
- Every error carries its facts as fields; the sentence is made from them.
- A lost connection alone never fails a write: the write waits and is sent again (SCENARIOS 4.5 rule 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tellback_protocol.frames import Error

if TYPE_CHECKING:
    from .conflict import Conflict


class TellbackError(Exception):
    """Everything this package raises on purpose."""


class RefusedError(TellbackError):
    """The server did not carry out a request, and sending it again as it is does not help."""

    def __init__(
        self, code: str, message: str, *, retry: str = "never", pointer: str | None = None, op: int | None = None
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retry = retry
        """`never`, `now`, `backoff`, `after-auth` or `after-sync`."""
        self.pointer = pointer
        """JSON pointer into the request, or None."""
        self.op = op
        """Number of the write, or None when it was no write."""
        self.expected: int | None = None
        """With `op-gap`: the number that comes next."""
        self.generation: str | None = None
        """With `generation-running`: which one is being written there."""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" (at {self.pointer})" if self.pointer else "")


class NotFoundError(RefusedError):
    """There is no such chat, or it belongs to somebody else."""


class RenamedError(RefusedError):
    """The chat has another name now: `to`."""

    to: str = ""
    chat_id: str = ""


class DeletedError(RefusedError):
    """The chat is in the trash; `Client.restore_chat` brings it back by its `chat_id`."""

    chat_id: str = ""
    next_op: int | None = None
    """The number of this session's next op on it, where the server told it."""


class ReadOnlyError(RefusedError):
    """The chat's file is damaged; it can be read and not written until it is repaired."""


class ForbiddenError(RefusedError):
    """This user may not do that."""


class UnauthenticatedError(RefusedError):
    """The token is missing, unknown or expired."""


class OutcomeUnknownError(TellbackError):
    """The server keeps no outcome of this op any more; whether it was stored has to be looked up in the chat."""

    def __init__(self, op: int) -> None:
        super().__init__(op)
        self.op = op

    def __str__(self) -> str:
        return f"the outcome of op {self.op} is no longer kept"


class ConflictError(TellbackError):
    """A write was not carried out because what it was made against was changed."""

    def __init__(self, conflict: Conflict) -> None:
        super().__init__(conflict)
        self.conflict = conflict
        """What was missed, and the exits: take_theirs, apply_mine_again, save_mine_as."""

    def __str__(self) -> str:
        return f"op {self.conflict.op}: {self.conflict.reason}"


class GenerationOver(TellbackError):
    """Text was pushed to a reply that has ended."""

    def __init__(self, generation: str, state: str) -> None:
        super().__init__(generation, state)
        self.generation = generation
        self.state = state
        """How it ended; `running` while its own end is on the way."""

    def __str__(self) -> str:
        return f"the generation {self.generation} has ended ({self.state})"


class ConnectionLost(TellbackError):
    """There is no connection, and none will be made again."""

    def __init__(self, reason: str, close_code: int | None = None) -> None:
        super().__init__(reason, close_code)
        self.reason = reason
        self.close_code = close_code
        """The WebSocket close code, when the server gave one."""

    def __str__(self) -> str:
        return self.reason if self.close_code is None else f"{self.reason} ({self.close_code})"


class SessionTakenOver(ConnectionLost):
    """Another connection said hello with this session (4501)."""


class ProtocolViolation(ConnectionLost):
    """The peer sent what the protocol does not allow, or refused ours as such."""


class ClientClosed(TellbackError):
    """The client was closed; writes without an answer are in the outbox file, if there is one."""

    def __str__(self) -> str:
        return "the client is closed"


class OutboxError(TellbackError):
    """The file of unacknowledged writes cannot be used."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class OutboxInUse(OutboxError):
    """Another process holds the outbox file: a session has one user."""


class OutboxCorrupt(OutboxError):
    """A record before the end of the outbox file cannot be read."""


_BY_CODE: dict[str, type[RefusedError]] = {
    "not-found": NotFoundError,
    "renamed": RenamedError,
    "deleted": DeletedError,
    "read-only": ReadOnlyError,
    "forbidden": ForbiddenError,
    "unauthenticated": UnauthenticatedError,
}


def refused(
    code: str, message: str, *, retry: str = "never", pointer: str | None = None, op: int | None = None
) -> RefusedError:
    """The error for a code, of the most precise type."""
    return _BY_CODE.get(code, RefusedError)(code, message, retry=retry, pointer=pointer, op=op)


def closed(code: int | None, reason: str) -> ConnectionLost | RefusedError | None:
    """What a close code means for the caller; None means: connect again."""
    if code is None or not 4500 <= code <= 4999:
        return None
    if code == 4501:
        return SessionTakenOver(reason or "another connection took over this session", code)
    if code == 4502:
        return UnauthenticatedError("unauthenticated", reason or "the token is missing, unknown or expired")
    if code == 4503:
        return ForbiddenError("forbidden", reason or "this user may not connect")
    return ProtocolViolation(reason or "the server refuses this client", code)


def error_of(frame: Error) -> RefusedError:
    """The error that an `error` frame means."""
    pointer = frame.pointer if isinstance(frame.pointer, str) else None
    op = frame.op if isinstance(frame.op, int) else None
    error = refused(frame.code, frame.message, retry=frame.retry, pointer=pointer, op=op)
    error.expected = frame.expected if isinstance(frame.expected, int) else None
    error.generation = frame.generation if isinstance(frame.generation, str) else None
    if isinstance(error, RenamedError | DeletedError):
        error.chat_id = frame.chat_id if isinstance(frame.chat_id, str) else ""
    if isinstance(error, RenamedError):
        error.to = frame.to if isinstance(frame.to, str) else ""
    if isinstance(error, DeletedError):
        error.next_op = frame.next_op if isinstance(frame.next_op, int) else None
    return error
