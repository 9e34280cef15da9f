"""Choices: what a repair would do, told before it is done. Values."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tellback_server.checks.findings import Finding

__all__ = ["Choice", "Made", "Unmendable"]


class Made(msgspec.Struct):
    """A file as it will be."""

    before: bytes | None
    """As it is; None when there is none."""
    after: bytes | None
    """None: it is taken away (a copy is kept)."""
    actions: list[str]
    quarantined: list[tuple[int, bytes]] = []

    @property
    def quarantine(self) -> bytes:
        """The lines that were taken out, each as it stood."""
        return b"".join(line if line.endswith(b"\n") else line + b"\n" for _number, line in self.quarantined)


class Choice(msgspec.Struct):
    """One file, and what is proposed for it."""

    path: str
    """As findings tell it."""
    user: str
    """Empty for the server's own files."""
    findings: list[Finding]
    actions: list[str]
    """Sentences."""
    make: Callable[[], Made | None] | None
    """Works out the new bytes from the file as it is now; None where something else is done."""
    run: Callable[[], None] | None = None
    """Does what is not a new file: a move to the trash, a new log."""
    quarantined: int = 0
    """Lines that will be put aside."""


class Unmendable(msgspec.Struct, frozen=True):
    """What was found and stays: why, and what a person can do."""

    finding: Finding
    reason: str
