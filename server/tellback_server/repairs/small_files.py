"""Small files: chat_sync, a trash manifest and the term file made anew from what else tells the same."""

from __future__ import annotations

import os
import re
import zlib

import msgspec

from tellback_protocol.ids import ChatName, Place, StateOwner, Version, is_integrity
from tellback_protocol.values import dumps
from tellback_server.checks.kinds import kind_of
from tellback_server.checks.owner_files import Known
from tellback_server.fs import Fs, FsError
from tellback_server.log.segment import SegmentReader, segment_name, segment_numbers
from tellback_server.log.term import TermLine, encode_term
from tellback_server.repairs.choices import Made
from tellback_server.sealed import seal
from tellback_server.store.found import parse_file
from tellback_server.store.marks import SyncMark, Watermark, mark_fields, sync_of
from tellback_server.trash import Entry

__all__ = ["mended_manifest", "mended_sync", "rebuilt_term"]

_FOLDER = re.compile(r"(\d+)-(.+)")
_CHAT_ID = re.compile(rb'"chat_id":"([0-9a-f-]{36})"')


def mended_sync(
    data: bytes, place: Place, known: Known, now_ms: int, file: bytes | None, *, begins_anew: bool
) -> Made | None:
    """chat_sync as the log or the session file tells it. Without either it is put aside: it is derived data.

    `begins_anew`: the log is older than the files. The next opening takes them as they are, in a new epoch.
    """
    sync = sync_of(data)
    fields = dict(sync.fields) if sync is not None else {}
    mark = sync.mark if sync is not None else None
    if begins_anew and mark is not None:
        mark = msgspec.structs.replace(mark, anew=True)
        return Made(data, _sync_file(fields, place, mark, now_ms), ["a new epoch begins at what the files hold"])
    base = known.base
    if base is not None:
        lines = 0
        if file is not None and base.file is not None and base.file.same_bytes(len(file), zlib.crc32(file)):
            assert not isinstance(place, StateOwner), "it has a file of messages"
            lines = len(parse_file(place, file).messages)
        watermark = Watermark(0, 0, 0) if base.file is None else Watermark(base.file.size_bytes, lines, base.file.crc32)
        mark = SyncMark(known.chat_id, str(place), base.version, base.head, watermark, dict(base.states))
        return Made(data, _sync_file(fields, place, mark, now_ms), ["made anew from the log and the session file"])
    found = _CHAT_ID.search(data)
    if found is not None and is_integrity(found[1].decode()):
        # Only the id is left: the file counts as another program's, under the id that it had.
        version = Version(1, 0, found[1].decode())
        mark = SyncMark(found[1].decode(), str(place), version, version, Watermark(0, 0, 0))
        return Made(data, _sync_file({}, place, mark, now_ms), ["the chat keeps its id; a new epoch begins"])
    return Made(data, None, ["taken away: nothing in it can be used, and the next write makes it anew"])


def _sync_file(fields: dict[str, object], place: ChatName | Place, mark: SyncMark, now_ms: int) -> bytes:
    version = mark.head if isinstance(place, StateOwner) else mark.version
    # The time stays when it is there, so that a second repair has nothing to change.
    fields = {"updated_at": now_ms, **fields, "integrity": version.integrity, "tellback": mark_fields(mark)}
    return dumps(fields)


def mended_manifest(fs: Fs, folder: str) -> Made | None:
    """The manifest of a trash entry from the files in its folder; None when they do not tell whose they are."""
    match = _FOLDER.fullmatch(os.path.basename(folder))
    if match is None:
        return None
    paths = sorted(_files_in(fs, folder, ""))
    places = [kind_of(tuple(path.split("/"))) for path in paths]
    owners = [kind.place for kind in places if kind.sort in ("card", "preset", "chat") and kind.place is not None]
    states = [kind.place for kind in places if kind.place is not None]
    place = next(iter(owners or states), None)
    if place is None:
        return None
    for kind in places:
        if kind.sort == "card" and kind.place is not None:
            place = kind.place
    entry = Entry(
        id=match[2], name=str(place), deleted_ms=int(match[1]), reason="deleted" if owners else "orphaned", files=paths
    )
    path = os.path.join(folder, "manifest.json")
    before = fs.read(path) if fs.stat(path) is not None else None
    return Made(before, seal(msgspec.json.encode(entry)), [f"made anew: {len(paths)} files of {place}"])


def _files_in(fs: Fs, folder: str, below: str) -> list[str]:
    found: list[str] = []
    for name in fs.listdir(folder):
        path, inner = os.path.join(folder, name), f"{below}{name}"
        stat = fs.stat(path)
        if stat is not None and stat.is_directory:
            found += _files_in(fs, path, f"{inner}/")
        elif inner != "manifest.json" and not name.endswith(".tellback-tmp"):
            found.append(inner)
    return found


def rebuilt_term(fs: Fs, log_directory: str, data: bytes) -> Made | None:
    """The term file as the segments tell it; None when a segment's header cannot be read or one is missing."""
    try:
        numbers = segment_numbers(fs.listdir(log_directory))
    except FsError:
        return None
    if not numbers or numbers != list(range(numbers[0], numbers[-1] + 1)):
        return None
    term = 0
    for number in numbers:
        with SegmentReader(fs, os.path.join(log_directory, segment_name(number))) as reader:
            if reader.header is None:
                return None
            term = max(term, reader.header.term)
    line = TermLine(term, numbers[0], numbers[-1])
    said = f"made anew from {len(numbers)} segments: term {term}, {numbers[0]} to {numbers[-1]}"
    return Made(data, encode_term(line), [said])
