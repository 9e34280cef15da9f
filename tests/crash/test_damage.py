"""The damage table of RELIABILITY: every file kind cut, turned, zeroed, swapped, replaced: found, mended or refused,
and never shown as what it is not. The ordinary run takes a seeded part; TELLBACK_DAMAGE_SHARE=1 takes all.
"""

from __future__ import annotations

import os
import random
import shutil
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec
import orjson
import pytest

from tellback_protocol.ids import CharacterOwner, Place, Version
from tellback_server.backup_folder import BackupFolder, FileSource, manifest_from
from tellback_server.checks.log_image import LogImage, log_folder
from tellback_server.contract.saved import Saved
from tellback_server.flushed import FlushedFile
from tellback_server.fs import Fs
from tellback_server.loading import ChatMissing, LoadedStream, load_chat
from tellback_server.log import Position
from tellback_server.staged import owner_bytes
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.marks import mark_fields, sync_of
from tellback_server.store_binding import Binding, as_file
from tellback_server.transfer.journal import Entry as ImportEntry
from tellback_server.transfer.journal import Journal
from tests.support.chat_desk import SilentLogger
from tests.support.damage import (
    PLACE,
    SHARE,
    Kinds,
    checked,
    codes,
    flips,
    folder_of_every_kind,
    repaired,
    rot,
    sectors,
    some,
    truncations,
)

OURS = (
    "chat", "sync", "state", "floor-state", "floor-log", "orphans", "owner-state", "owner-sync", "card", "manifest",
    "session", "active", "name", "index", "term",
)
"""What carries a checksum, of ours or (a card) of its format."""

SHOWN_MAX = 20 if SHARE < 1 else 2_000
"""A server's whole view of the folder is looked at for each."""
CHAT_ID = "5a4b3c2d-1e0f-4a9b-8c7d-6e5f4a3b2c1d"


class Shown(NamedTuple):
    """What the server would show."""

    head: tuple[int, int, str]
    messages: list[bytes]
    states: dict[str, bytes | None]
    damage: int
    last_op: int


def shown(data: Path, place: Place = PLACE) -> Shown | None:
    """As the server loads the chat, or what a character has; None when it is refused."""
    files = FileStore(Fs(), str(data), logger=SilentLogger())
    image = LogImage(Fs(), log_folder(str(data)))
    facts = image.facts()
    names = {one.base.name: key.partition("/")[2] for key, one in facts.items() if one.base is not None}
    try:
        loaded = load_chat(files, image, DEFAULT_USER, place, now_ms=1, chat_id=names.get(str(place)))
    except OSError:
        return None
    if isinstance(loaded, ChatMissing):
        return None
    assert isinstance(loaded, LoadedStream)
    stream = loaded.stream
    head = (stream.head.epoch, stream.head.seq, stream.head.integrity)
    states = {name: document.data for name, document in stream.states.items() if not document.corrupt}
    last = max((ops.last for ops in stream.sessions.values()), default=0)
    return Shown(head, list(stream.chat.served_all()), states, len(stream.damage), last)


@pytest.fixture
async def kinds(tmp_path: Path) -> Kinds:
    return await folder_of_every_kind(tmp_path / "data")


def test_a_folder_of_every_kind_is_clean(kinds: Kinds) -> None:
    assert codes(kinds.data) == set()
    for kind in kinds.files:
        assert kinds.path(kind).is_file(), kind


def tells_the_same(kind: str, data: bytes, damaged: bytes) -> bool:
    """Whether nothing that we read from the file changed."""
    if kind in ("sync", "owner-sync"):
        # Fields of other programs stand beside ours.
        before, after = sync_of(data), sync_of(damaged)
        return before is not None and after is not None and before.mark == after.mark
    # A file that lost exactly its checksum is one of an earlier version, with the same JSON.
    return data.startswith(damaged) and data[len(damaged) :].startswith(b"\ncrc32=")


@pytest.mark.parametrize("kind", OURS)
def test_every_bit_and_every_cut_of_what_we_write_is_found(kind: str, kinds: Kinds) -> None:
    """[X4, X12] Something is told of each damaged file, or it tells the same as before."""
    path = kinds.path(kind)
    data = path.read_bytes()
    clean = {finding.code for finding in checked(path)}
    for what, damaged in some(chain(flips(data), truncations(data), sectors(data)), data, kind):
        rot(path, damaged)
        told = {finding.code for finding in checked(path)} - clean
        assert told or tells_the_same(kind, data, damaged), f"{kind}: {what} was not found"
    rot(path, data)


@pytest.mark.parametrize("kind", [
    "chat", "sync", "state", "floor-state", "floor-log", "orphans", "owner-state", "owner-sync", "session",
])
def test_what_is_damaged_is_never_shown_under_the_version_of_what_was_written(
    kind: str, kinds: Kinds, tmp_path: Path
) -> None:
    """[X6, X11, X12] Nobody sees other bytes under the head that we told; a state that rotted is seen by nobody."""
    place = CharacterOwner("Pip") if kind.startswith("owner-") else PLACE
    whole = shown(kinds.data, place)
    assert whole is not None
    assert whole.damage == 0
    data = kinds.path(kind).read_bytes()
    cases = some(chain(flips(data), truncations(data), sectors(data)), data, f"shown {kind}")
    for number, (what, damaged) in enumerate(cases[:: max(1, len(cases) // SHOWN_MAX)]):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(kinds.data, copy, copy_function=shutil.copy2)
        rot(copy / kinds.files[kind], damaged)
        found = shown(copy, place)
        if found is not None and found.head == whole.head and not found.damage:
            seen = {name: data for name, data in whole.states.items() if name in found.states}
            assert found == whole._replace(states=seen), f"{kind}: {what}"
        shutil.rmtree(copy)


def test_a_rotten_chat_is_served_read_only_until_it_is_repaired(kinds: Kinds) -> None:
    """[X6, X7] A flipped bit is turned back to what was written, and the rotten bytes are kept."""
    path = kinds.path("chat")
    data = path.read_bytes()
    for what, damaged in some(flips(data), data, "rotten")[:15]:
        stat = path.stat()
        rot(path, damaged)
        assert path.stat().st_mtime_ns == stat.st_mtime_ns
        assert codes(path) == {"chat-bit-flipped"} or "chat-bit-flipped" in codes(path), what
        repaired(kinds.data)
        assert path.read_bytes() == data, what
        backups = kinds.data / DEFAULT_USER / "backups" / "tellback"
        kept = sorted(backups.glob("repairs/*/files/chats/Pip/*.jsonl"))
        assert damaged in [copy.read_bytes() for copy in kept]
        assert codes(kinds.data) == set(), what


@pytest.mark.parametrize("kind", ["chat", "sync", "state", "card", "group", "preset", "manifest", "session", "active",
                                  "name", "term"])
@pytest.mark.parametrize("instead", ["directory", "link", "fifo", *([] if os.geteuid() == 0 else ["unreadable"])])
def test_what_is_no_file_is_refused_and_told(kind: str, instead: str, kinds: Kinds) -> None:
    """[X5] Nothing is followed, nothing waits."""
    path = kinds.path(kind)
    data = path.read_bytes()
    path.unlink()
    match instead:
        case "directory":
            path.mkdir()
        case "link":
            elsewhere = kinds.data.parent / "elsewhere"
            elsewhere.write_bytes(data)
            path.symlink_to(elsewhere)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.write_bytes(data)
            path.chmod(0)
    found = {finding.code for finding in checked(kinds.data) if finding.path == kinds.files[kind]}
    assert found & {"file-unsafe", "file-unreadable", "log-corrupt", "manifest-broken"}, found
    plan = repaired(kinds.data)
    assert path.is_symlink() or not path.is_file() or instead == "unreadable"
    assert plan.left


def test_a_backup_is_held_against_its_manifest(kinds: Kinds) -> None:
    """[X4] Also when the file is shared by a later backup, and never by what its lines look like."""
    files = FileStore(Fs(), str(kinds.data), logger=SilentLogger())
    loaded = files.read_chat(DEFAULT_USER, PLACE)
    assert loaded is not None
    version = Version(1, 5, "8c5f7d0e-1b2c-8d3e-9f4a-000000000005")
    source = FileSource(
        user=DEFAULT_USER, place=PLACE, chat_id=kinds.chat_id, version=version, head=version, file=loaded.identity,
        state_files={name: one.identity for name, one in files.read_states(DEFAULT_USER, PLACE).items()}, count=3,
    )
    manifest = BackupFolder(files).take(source, "demand", 1_763_700_000_000).manifest
    assert codes(kinds.data) == set()
    folder = kinds.data / DEFAULT_USER / "backups" / "tellback" / kinds.chat_id
    path = told = folder / f"{manifest.backup}.json"
    data = path.read_bytes()
    for what, damaged in some(chain(flips(data), truncations(data), sectors(data)), data, "backup-manifest")[:8]:
        path.write_bytes(damaged)
        assert codes(path) or manifest_from(damaged) == (manifest, False), what
        repaired(kinds.data)
        assert "session-bit-flipped" not in codes(path), f"{what} was not turned back"
    path.write_bytes(data)
    for kept in manifest.files.values():
        path = folder / kept.file
        data = path.read_bytes()
        for what, damaged in some(chain(flips(data), truncations(data), sectors(data)), data, kept.file)[:12]:
            rot(path, damaged)
            assert codes(told) & {"backup-differs", "backup-broken"}, f"{kept.file}: {what}"
        path.unlink()
        assert codes(told) == {"backup-broken"}
        path.write_bytes(data)
    assert codes(kinds.data) == set()


def test_every_bit_of_the_log_is_told(kinds: Kinds) -> None:
    """[X4] A check says what a start would do: turn it back, cut it off, or refuse."""
    for path in sorted((kinds.data / ".tellback" / "log").glob("*.log")):
        content = path.read_bytes()
        used = len(content.rstrip(b"\0"))
        chance = random.Random(path.name)
        for bit in sorted(chance.sample(range(used * 8), 25 if SHARE < 1 else used * 8)):
            damaged = bytearray(content)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            path.write_bytes(bytes(damaged))
            told = {finding.code for finding in checked(path)}
            # What stands between a segment's header and its first batch is nobody's.
            assert told & {"log-bit-flipped", "log-corrupt", "log-torn-tail"} or 640 <= bit < 4096, (path.name, bit)
        path.write_bytes(content)


def own_files(data: Path) -> dict[str, bytes]:
    """What the server keeps beside files that belong to no chat, as it writes it."""
    saved = Saved()
    saved.append(2)
    journal = Journal(Fs(), str(data / ".tellback"), "default-user", writes=True)
    for number in range(3):
        journal.add(ImportEntry("/from", f"{number}.jsonl", f"chats/A/{number}.jsonl", "x", "f", "s", {}, number))
    journal.close()
    FlushedFile(Fs(), str(data), "sqlite:///backup").write(Position(4711))
    return {
        "store": as_file(Binding(CHAT_ID, "sqlite:///chats"))[1],
        "mirror": as_file(Binding(CHAT_ID, "files:///mirror"))[1],
        "flushed": (data / ".tellback" / "flushed").read_bytes(),
        f"staged/default-user/{CHAT_ID}-{CHAT_ID}": owner_bytes(saved.value()),
        f"kept/default-user/{CHAT_ID}": owner_bytes(saved.value()),
        "imports/default-user.jsonl": (data / ".tellback" / "imports" / "default-user.jsonl").read_bytes(),
    }


def test_every_bit_and_every_cut_of_the_server_s_other_files_is_found(tmp_path: Path) -> None:
    """[X12] Also of those that stand there only beside a store, a backup or an import."""
    data = tmp_path / "data"
    (data / "chats").mkdir(parents=True)
    for name, content in own_files(data).items():
        path = data / ".tellback" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        assert codes(path) == set(), name
        assert checked(path) == [], name
        for what, damaged in some(chain(flips(content), truncations(content), sectors(content)), content, name)[:40]:
            path.write_bytes(damaged)
            # A file that lost exactly its checksum, or whole lines at its end, tells the same as far as it goes.
            is_same = tells_the_same(name, content, damaged) or content.startswith(damaged.rstrip(b"\n") + b"\n")
            assert checked(path) or is_same or not damaged.strip(b"\n"), f"{name}: {what} was not found"
        path.unlink()


def test_an_older_copy_of_the_log_is_no_history(kinds: Kinds) -> None:
    """[X4] chat_sync that is ahead of the log is told, and the repair begins a new epoch."""
    before = shown(kinds.data)
    assert before is not None
    sync = kinds.path("sync").read_bytes()
    known = sync_of(sync)
    assert known is not None
    assert known.mark is not None
    head = msgspec.structs.replace(known.mark.head, seq=known.mark.head.seq + 9)
    ahead = msgspec.structs.replace(known.mark, head=head)
    kinds.path("sync").write_bytes(orjson.dumps({**known.fields, "tellback": mark_fields(ahead)}))
    assert "sync-ahead-of-log" in codes(kinds.data)
    repaired(kinds.data)
    after = shown(kinds.data)
    assert after is not None
    assert after.head[0] > before.head[0]
    assert after.messages == before.messages
