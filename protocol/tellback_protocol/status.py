"""The status on the wire: how a user's connections and live owners stand, and the log below them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .fields import WireInteger


class StatusGet(msgspec.Struct, tag="status", tag_field="type", gc=False):
    """How the user's connections and live owners stand now."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200
    """Of connections, and of owners."""
    id: WireInteger | None = None


class ConnectionStatus(msgspec.Struct, omit_defaults=True):
    """One connection of the user."""

    session: str
    address: str
    connected_ms: int
    """When it was made."""
    client: str = ""
    """The software, as `hello` named it."""
    open: int = 0
    """Owners that it has open."""
    names: list[str] = []
    """What some of them are called."""
    producing: int = 0
    """Chats with a generation whose text comes from it."""
    in_flight: int = 0
    """Requests of it that wait for their answer, the question for this among them."""
    waiting_bytes: int = 0
    """Frames that wait until it reads on."""
    slow: bool = False
    """The socket takes nothing more for now."""
    behind: int = 0
    """How often it was too slow for an owner, and told so."""


class OwnerStatus(msgspec.Struct, omit_defaults=True):
    """One live owner with its three positions, as numbers of commits."""

    name: str
    """`character:Alice/First meeting`, `character:Alice`, `preset:OpenAI Settings/x`."""
    sequenced: int
    """Accepted. Those past `durable` are told to nobody yet, and a crash may undo them."""
    durable: int
    """On the disk, acknowledged and told to those who have it open."""
    checkpointed: int
    """In the owner's files."""
    connections: int = 0
    """That have it open."""
    unfolded_ms: int = 0
    """Age of the oldest commit that is not in the files."""
    read_only: bool = False


class LogStatus(msgspec.Struct):
    """The log of the server, whoever writes."""

    segments: int
    waiting_bytes: int
    """Records that wait for the disk."""
    waiting_answers: int
    """Answers and commits that are told when it has them."""
    stalled_ms: int
    """How long it has not answered while something waits."""
    checkpoint_lag_ms: int
    """Age of the oldest durable write that is not in its owner's files."""
    sync_bounds_ms: list[int]
    """Upper bounds of the histogram, ascending; one more count is above the last."""
    sync_counts: list[int]
    """The latest syncs by how long they took."""


class StatusFrame(msgspec.Struct, tag="status", tag_field="type"):
    """Connections that read slowly first, then the newest; owners with most outside their files first."""

    connections: list[ConnectionStatus]
    connections_total: int
    owners: list[OwnerStatus]
    owners_total: int
    log: LogStatus
    id: int | None = None
