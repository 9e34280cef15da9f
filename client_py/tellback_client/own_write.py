"""What a client asks of an open owner under an op number: everything that can stand in a lane.

Rules of this module:
- A document write can be part of a batch; a live write stands alone.
"""

from __future__ import annotations

from tellback_protocol.backups import BackupRestore
from tellback_protocol.generation_requests import (
    Generate,
    GenerationCancel,
    GenerationEnd,
    GenerationStart,
    GenerationWrite,
)
from tellback_protocol.requests import (
    Append,
    ChatBranch,
    ChatDelete,
    ChatRename,
    DocumentWrite,
    OwnerDelete,
    OwnerRename,
)

__all__ = ["Beginning", "LiveWrite", "OwnWrite", "Unbased", "shown_as"]

LiveWrite = ChatRename | ChatDelete | ChatBranch | BackupRestore | OwnerRename | OwnerDelete | GenerationWrite
"""What is asked of an open chat as a whole, or of a reply; it is no part of a batch."""
OwnWrite = DocumentWrite | LiveWrite
Beginning = GenerationStart | Generate
"""What begins a generation."""
Unbased = GenerationEnd | GenerationCancel
"""What names no version: it ends a generation, whatever came meanwhile."""


def shown_as(write: OwnWrite) -> DocumentWrite | None:
    """What belongs on top of the confirmed chat until the server has answered; None for nothing.

    What becomes of a chat as a whole, and of a reply, is known when the server says so.
    """
    if isinstance(write, Beginning):
        return Append(write.chat, write.messages) if write.messages else None
    return None if isinstance(write, LiveWrite) else write
