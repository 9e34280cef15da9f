"""What can go wrong with a model server, in types.

Rules this module keeps:

- `kind` comes from a closed set: it labels metrics, and `code` (with "upstream-" before it) is what tabs are told.
- A sentence may be shown to a user: it names the upstream as the settings do, never its URL, its key or our insides.
- Needs nothing but the standard library, so that whoever handles these errors need not load an HTTP client.

Errors:

    UpstreamError               has upstream (its name in the settings)
        UpstreamUnreachable     no connection, or it ended before an answer began
        UpstreamRefused         an error instead of a reply, or inside of one; has status, message, retry_after_s
        UpstreamTimeout         has phase (connect, first-token, between-tokens) and after_s
        UpstreamCut             the reply ended in the middle: neither a finish reason nor [DONE]
        UpstreamBad             what came is no streamed chat completion; has what
    UnknownUpstream             the settings name no such upstream; has upstream, known
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

__all__ = [
    "KINDS",
    "Phase",
    "UnknownUpstream",
    "UpstreamBad",
    "UpstreamCut",
    "UpstreamError",
    "UpstreamRefused",
    "UpstreamTimeout",
    "UpstreamUnreachable",
]

Phase = Literal["connect", "first-token", "between-tokens"]

_PHASES: Final[dict[Phase, str]] = {
    "connect": "did not take a connection within",
    "first-token": "sent no token within",
    "between-tokens": "sent no further token for",
}


class UpstreamError(Exception):
    """A reply that an upstream began, or should have begun, will not be finished by it."""

    kind: ClassVar[str]

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.upstream = upstream

    @property
    def code(self) -> str:
        """The error code on the wire."""
        return f"upstream-{self.kind}"

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed soon; only before the first token does that matter."""
        return False


class UpstreamUnreachable(UpstreamError):
    """There was no connection, or it ended before the answer began."""

    kind = "unreachable"

    @property
    def is_transient(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"The model server {self.upstream} cannot be reached."


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error. `status` is None when an error inside a stream names none."""

    kind = "refused"

    def __init__(self, upstream: str, status: int | None, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(upstream)
        self.status = status
        self.message = message
        """Printable, short, without the key."""
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        # Too many requests, or a fault of the server itself; 501 and 505 say that it can not do this at all.
        return self.status is not None and (
            self.status == 429 or (500 <= self.status <= 599 and self.status not in (501, 505))
        )

    def __str__(self) -> str:
        status = f" ({self.status})" if self.status is not None else ""
        return f"The model server {self.upstream} refused{status}" + (f": {self.message}" if self.message else ".")


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for too long."""

    kind = "timeout"

    def __init__(self, upstream: str, phase: Phase, after_s: float) -> None:
        super().__init__(upstream)
        self.phase = phase
        self.after_s = after_s

    @property
    def is_transient(self) -> bool:
        return self.phase == "connect"

    def __str__(self) -> str:
        return f"The model server {self.upstream} {_PHASES[self.phase]} {self.after_s:g} s."


class UpstreamCut(UpstreamError):
    """The reply ended in the middle. What came before was handed out."""

    kind = "cut"

    @property
    def is_transient(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"The answer of the model server {self.upstream} ended in the middle."


class UpstreamBad(UpstreamError):
    """The upstream does not speak as an OpenAI-compatible server does."""

    kind = "bad"

    def __init__(self, upstream: str, what: str) -> None:
        super().__init__(upstream)
        self.what = what

    def __str__(self) -> str:
        return f"The model server {self.upstream} sent what is no streamed chat completion: {self.what}."


class UnknownUpstream(Exception):
    """No upstream of this name is configured."""

    def __init__(self, upstream: str, known: tuple[str, ...]) -> None:
        super().__init__(upstream, known)
        self.upstream = upstream
        self.known = known

    def __str__(self) -> str:
        known = f"there are {', '.join(self.known)}" if self.known else "none is configured"
        return f"This server has no such model server; {known}."


KINDS: Final = tuple(
    error.kind for error in (UpstreamUnreachable, UpstreamRefused, UpstreamTimeout, UpstreamCut, UpstreamBad)
)
"""Every kind there is."""
