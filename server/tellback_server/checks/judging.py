"""Judging: is a file as we left it, torn by a crash, edited by another program, or rotten? Pure (BEHAVIOUR X4).

    as the base or an INTENT says            nothing to say
    the base and a piece of our append       chat-append-torn: the next start finishes it
    one bit away from what we wrote          *-bit-flipped: damage, or a warning when the file was written since
    other bytes, and its stat is unchanged   *-rotten: nobody wrote, so the disk lost something
    anything else                            *-edited: another program's, as it is meant to work
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tellback_server.checks.findings import Tally, found
from tellback_server.fs import FileStat
from tellback_server.one_bit import flipped_bit
from tellback_server.records import FileIdentity

__all__ = ["Judged", "is_untouched", "judge", "tell"]

Judged = Literal["ours", "torn", "flipped", "rotten", "edited", "unknown"]


def judge(
    size_bytes: int, crc32: int, crc_at: Mapping[int, int], known: Sequence[FileIdentity], stat: FileStat | None,
    grows_to: int = 0,
) -> tuple[Judged, int]:
    """What a file is, and the byte of a flipped bit (else -1).

    `known` is what we wrote: the base first, then what INTENTs announce. `crc_at` holds the CRC of the file's first so
    many bytes, `grows_to` the size to come of an append that was announced (0: none was).
    """
    if not known:
        return "unknown", -1
    for identity in known:
        if identity.same_bytes(size_bytes, crc32):
            return "ours", -1
    base = known[0]
    if base.size_bytes < size_bytes <= grows_to and crc_at.get(base.size_bytes) == base.crc32:
        return "torn", -1
    for identity in known:
        if identity.size_bytes == size_bytes:
            bit = flipped_bit(size_bytes, crc32 ^ identity.crc32)
            if bit is not None:
                return "flipped", bit >> 3
    if stat is not None and is_untouched(stat, known):
        return "rotten", -1
    return "edited", -1


def is_untouched(stat: FileStat, known: Sequence[FileIdentity]) -> bool:
    """Whether nobody wrote to the file since we knew it."""
    return any(identity.is_untouched(stat.size_bytes, stat.mtime_ns, stat.inode) for identity in known)


def tell(tally: Tally, what: Literal["chat", "state"], judged: Judged, offset: int, *, untouched: bool) -> None:
    """Adds what was judged. A flipped bit in a file that was written since may be somebody's edit of one letter."""
    match judged:
        case "flipped":
            if untouched:
                tally.add(f"{what}-bit-flipped", offset=offset)
            else:
                one = found(
                    f"{what}-bit-flipped", tally.path, "the file was written since: it may be an edit of one letter",
                    offset=offset, severity="warning",
                )
                tally.put(one)
        case "rotten" | "edited":
            tally.add(f"{what}-{judged}")
        case "torn":
            tally.add("chat-append-torn")
        case "ours" | "unknown":
            pass
