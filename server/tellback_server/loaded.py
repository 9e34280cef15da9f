"""Loaded: what reading an owner's files and log gives: its stream and what its files hold, or that it is not there."""

from __future__ import annotations

import msgspec

from tellback_protocol.ids import Version
from tellback_protocol.stream import Stream
from tellback_server.sessions import SessionFile
from tellback_server.store.held import FileState

__all__ = ["AdoptionReport", "ChatMissing", "LoadedStream", "NewRecord"]


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to append."""

    kind: int
    owner: str
    seq: int
    body: bytes


class AdoptionReport(msgspec.Struct, frozen=True, gc=False):
    """What an outside edit led to, for logs and people."""

    recovered: list[str]
    """Chats that hold our version."""
    backups: list[str]
    """Backup files, below the user's root."""
    refused: list[int]
    """Seqs of pending commits that did not fit the file."""
    states: list[str]
    """Namespaces whose sidecar was changed."""


class LoadedStream(msgspec.Struct, kw_only=True):
    """A chat as it is now."""

    stream: Stream
    file: FileState
    anchored: bool
    records: list[NewRecord]
    adoption: AdoptionReport | None
    saved: SessionFile | None = None


class ChatMissing(msgspec.Struct, frozen=True, kw_only=True):
    """There is no file. `head` tells the last version when the chat had a history of ours (it was deleted outside)."""

    user: str
    name: str
    chat_id: str
    head: Version | None
    pending: int
    """Acknowledged commits that no file ever held."""
    backups: list[str] = []
    """Where they are kept, below the user's root; empty when there are none."""
    answers: Stream | None = None
    """What its ops led to, without documents: who sends one again gets its answer (O2)."""
