"""Repairs on the wire: what is wrong with a chat's files, and what the server can put right (BEHAVIOUR X14)."""

from __future__ import annotations

import msgspec

from .fields import WireInteger

__all__ = ["ChatRepair", "ChatRepairFrame", "FoundDamage", "PlannedRepair"]


class ChatRepair(msgspec.Struct, tag="chat-repair", tag_field="type", gc=False):
    """What can be done about a damaged chat; with `apply`, do it. Every file is kept as it was."""

    chat: str
    apply: bool = False
    id: WireInteger | None = None


class FoundDamage(msgspec.Struct, omit_defaults=True):
    """Something that is wrong with a file."""

    code: str
    """One of those in CHECK.md."""
    severity: str
    """`warning`: all is served; `damage`: bytes cannot be read as they were written."""
    path: str
    """Below the user's folder."""
    message: str
    remedy: str
    """What can be done, by a repair or a person."""
    line: int = 0
    """From 1; 0 when it is about the file as a whole."""
    count: int = 1


class PlannedRepair(msgspec.Struct, omit_defaults=True):
    """One file, and what is done to it."""

    path: str
    actions: list[str]
    """Sentences."""
    quarantined: int = 0
    """Lines that are taken out and kept apart."""


class ChatRepairFrame(msgspec.Struct, tag="chat-repair", tag_field="type", omit_defaults=True):
    """What was found, what a repair does, and what stays as it is."""

    chat_id: str
    findings: list[FoundDamage]
    repairs: list[PlannedRepair]
    left: list[FoundDamage]
    """What nothing that is known puts right."""
    done: bool = False
    """The repairs are carried out."""
    kept: list[str] = []
    """Folders below the user's with the files as they were."""
    id: int | None = None
