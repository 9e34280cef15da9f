"""Backups in their folder: byte for byte, whole or not there, and nobody's in the way of anybody else's."""

from __future__ import annotations

import contextlib
import errno
import json
import zlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from tellback_protocol.ids import CharacterChat, ChatName, GroupChat, Version
from tellback_server.backup_folder import BackupDamaged, BackupFolder, FileSource, Manifest
from tellback_server.fs import FileMissing, Fs
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.held import OutsideEdit
from tellback_server.thinning import DAY_MS, Policy
from tests.support.chat_desk import SilentLogger
from tests.support.damage import flips, sectors, some, truncations
from tests.support.injected_fs import InjectedFs, SimulatedCrash

CHAT_ID = "3c6a0b1e-0000-4000-8000-000000000001"
OTHER_ID = "3c6a0b1e-0000-4000-8000-000000000002"
NOW_MS = 1_763_000_000_000
PLACE = CharacterChat("アリス", "はじめまして")
LINES = b'{"chat_metadata":{}}\n{"id":"a","mes":"\xe3\x81\x93"}\r\n\n{"mes":"torn'
STATE = b'{ "n" : 1 }'


def store(data: Path, fs: Fs | None = None) -> FileStore:
    return FileStore(fs or Fs(), str(data), (DEFAULT_USER,), logger=SilentLogger())


def put(data: Path, place: ChatName = PLACE, lines: bytes = LINES, **states: bytes) -> None:
    folder = data / DEFAULT_USER / (f"chats/{place.character}" if isinstance(place, CharacterChat) else "group chats")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{place.chat}.jsonl").write_bytes(lines)
    for namespace, content in (states or {"memory": STATE}).items():
        (folder / f"{place.chat}.luker-state.{namespace}.json").write_bytes(content)


def source(files: FileStore, seq: int = 4, place: ChatName = PLACE, chat_id: str = CHAT_ID) -> FileSource:
    version = Version(1, seq, f"8c5f7d0e-1b2c-8d3e-9f4a-{seq:012x}")
    loaded = files.read_chat(DEFAULT_USER, place)
    states = files.read_states(DEFAULT_USER, place)
    return FileSource(
        user=DEFAULT_USER, place=place, chat_id=chat_id, version=version, head=version, count=2,
        file=None if loaded is None else loaded.identity,
        state_files={namespace: state.identity for namespace, state in states.items()},
    )


def standing(data: Path, chat_id: str = CHAT_ID) -> dict[str, bytes]:
    folder = data / DEFAULT_USER / "backups/tellback" / chat_id
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def test_a_backup_is_the_owners_files_byte_for_byte_z1(tmp_path: Path) -> None:
    """[Z1]: state files that nobody here knows too; named so that a person can copy them back."""
    put(tmp_path, memory=STATE, Odd=b"\xff no json", plot__floor_log=b'{"version":1,"commits":[]}')
    files = store(tmp_path)
    backups = BackupFolder(files)

    taken = backups.take(source(files), "demand", NOW_MS)

    assert taken.is_new
    found = standing(tmp_path)
    manifest = json.loads(found.pop(f"4-{NOW_MS}.json"))
    assert found == {
        f"4-{NOW_MS}.jsonl": LINES, f"4-{NOW_MS}.luker-state.memory.json": STATE,
        f"4-{NOW_MS}.luker-state.Odd.json": b"\xff no json",
        f"4-{NOW_MS}.luker-state.plot__floor_log.json": b'{"version":1,"commits":[]}',
    }
    assert (manifest["name"], manifest["chat_id"]) == ("character:アリス/はじめまして", CHAT_ID)
    assert manifest["head"]["seq"] == 4
    assert manifest["files"][".jsonl"] == {
        "file": f"4-{NOW_MS}.jsonl", "size_bytes": len(LINES), "crc32": zlib.crc32(LINES)
    }
    assert backups.entries(DEFAULT_USER, CHAT_ID) == [taken.manifest]
    assert backups.find(DEFAULT_USER, CHAT_ID, "last") == taken.manifest
    assert backups.read(DEFAULT_USER, taken.manifest)[".jsonl"] == LINES


def test_what_stands_already_is_not_stored_twice_z4(tmp_path: Path) -> None:
    """[Z4]: the same at the same version is one backup; unchanged files of a new one are those of the earlier."""
    put(tmp_path)
    files = store(tmp_path)
    backups = BackupFolder(files)
    first = backups.take(source(files), "schedule", NOW_MS)
    again = backups.take(source(files), "demand", NOW_MS + 5)
    assert (again.manifest, again.is_new, again.written_bytes) == (first.manifest, False, 0)

    put(tmp_path, memory=b'{"n":2}')
    second = backups.take(source(files, 5), "schedule", NOW_MS + 10)
    assert second.manifest.files[".jsonl"].file == f"4-{NOW_MS}.jsonl"
    assert f"5-{NOW_MS + 10}.jsonl" not in standing(tmp_path)
    assert backups.read(DEFAULT_USER, second.manifest) == {
        ".jsonl": LINES, ".luker-state.memory.json": b'{"n":2}'
    }

    # Rot in the earlier one is not handed on.
    (tmp_path / DEFAULT_USER / "backups/tellback" / CHAT_ID / f"4-{NOW_MS}.jsonl").write_bytes(LINES[:-1] + b"?")
    third = backups.take(source(files, 6), "schedule", NOW_MS + 20)
    assert backups.read(DEFAULT_USER, third.manifest)[".jsonl"] == LINES
    with pytest.raises(BackupDamaged, match="is not what was written"):
        backups.read(DEFAULT_USER, second.manifest)


def test_two_at_once_are_two_and_names_evict_nobody_z1_z5(tmp_path: Path) -> None:
    """[Z1] [Z5]: two versions in one millisecond; chats of `bob` and `bob_smith`; one that has another's name now."""
    places = {CHAT_ID: GroupChat("bob"), OTHER_ID: GroupChat("bob_smith")}
    files = store(tmp_path)
    backups = BackupFolder(files)
    for moment in range(30):
        for chat_id, place in places.items():
            put(tmp_path, place, b'{"mes":"%d"}\n' % moment)
            backups.take(source(files, moment, place, chat_id), "schedule", NOW_MS)
    put(tmp_path, GroupChat("bob"), b'{"mes":"another chat of this name"}\n')
    third = "3c6a0b1e-0000-4000-8000-000000000003"
    backups.take(source(files, 0, GroupChat("bob"), third), "schedule", NOW_MS)
    assert backups.owners(DEFAULT_USER) == [CHAT_ID, OTHER_ID, third]
    for chat_id in places:
        assert len({one.backup for one in backups.entries(DEFAULT_USER, chat_id)}) == 30

    for one in range(1, 25):
        backups.thin(DEFAULT_USER, CHAT_ID, NOW_MS + one * 40 * DAY_MS, Policy())
    assert [one.head.seq for one in backups.entries(DEFAULT_USER, CHAT_ID)] == [29]
    assert len(backups.entries(DEFAULT_USER, OTHER_ID)) == 30
    assert len(backups.entries(DEFAULT_USER, third)) == 1


def test_thinning_takes_no_file_that_another_backup_needs_z4_z5(tmp_path: Path) -> None:
    """[Z4] [Z5]"""
    put(tmp_path)
    files = store(tmp_path)
    backups = BackupFolder(files)
    for day in range(4):
        put(tmp_path, memory=b"%d" % day)
        backups.take(source(files, 4 + day), "schedule", NOW_MS + day * 60_000)

    assert backups.thin(DEFAULT_USER, CHAT_ID, NOW_MS + DAY_MS * 400, Policy()) == 3

    (left,) = backups.entries(DEFAULT_USER, CHAT_ID)
    assert backups.read(DEFAULT_USER, left) == {".jsonl": LINES, ".luker-state.memory.json": b"3"}
    assert set(standing(tmp_path)) == {
        f"4-{NOW_MS}.jsonl", f"7-{NOW_MS + 180_000}.json", f"7-{NOW_MS + 180_000}.luker-state.memory.json"
    }


def test_room_is_made_from_the_oldest_and_an_alarm_is_left_when_it_cannot_z6(tmp_path: Path) -> None:
    """[Z6]: pieces of a loss are no last backups of a chat."""
    files = store(tmp_path)
    backups = BackupFolder(files)
    for chat_id, place in ((CHAT_ID, GroupChat("bob")), (OTHER_ID, GroupChat("боб"))):
        for seq in range(3):
            put(tmp_path, place, b'{"mes":"%b"}\n' % (b"%d" % seq * 10_000), memory=b"1")
            backups.take(source(files, seq, place, chat_id), "schedule", NOW_MS + seq)
    piece = files.backup(DEFAULT_USER, CHAT_ID, 9, NOW_MS - 5, b"kept")
    assert [one.is_piece for one in backups.entries(DEFAULT_USER, CHAT_ID)] == [False, False, False, True]

    crowd = backups.make_room(DEFAULT_USER, 25_000)

    assert crowd.size_bytes <= 25_000
    for chat_id in (CHAT_ID, OTHER_ID):
        left = backups.entries(DEFAULT_USER, chat_id)
        assert [one.head.seq for one in left if not one.is_piece] == [2]
        assert backups.read(DEFAULT_USER, left[0])[".jsonl"].startswith(b'{"mes":"22222')
    assert (tmp_path / DEFAULT_USER / piece).read_bytes() == b"kept"
    assert backups.make_room(DEFAULT_USER, 1).size_bytes > 1
    assert backups.make_room(DEFAULT_USER, 1).going == []


def test_pieces_are_listed_and_read_as_they_are_z10(tmp_path: Path) -> None:
    """[Z10]: what was kept before something was given up has no manifest, and is no less there."""
    put(tmp_path)
    files = store(tmp_path)
    backups = BackupFolder(files)
    files.backup(DEFAULT_USER, CHAT_ID, 3, NOW_MS, b"lines\n")
    files.backup(DEFAULT_USER, CHAT_ID, 3, NOW_MS, b"{}", ".memory.json")

    (piece,) = backups.entries(DEFAULT_USER, CHAT_ID)

    assert (piece.reason, piece.backup) == ("piece", f"3-{NOW_MS}")
    assert backups.read(DEFAULT_USER, piece) == {".jsonl": b"lines\n", ".memory.json": b"{}"}
    assert backups.find(DEFAULT_USER, CHAT_ID, "last") is None


def test_what_is_no_backup_is_not_read_z10(tmp_path: Path) -> None:
    """[Z10]: a manifest that names another folder, another owner, or nothing; an id that is a path."""
    put(tmp_path)
    files = store(tmp_path)
    backups = BackupFolder(files)
    manifest = backups.take(source(files), "demand", NOW_MS).manifest
    folder = tmp_path / DEFAULT_USER / "backups/tellback" / CHAT_ID
    told = json.loads((folder / f"4-{NOW_MS}.json").read_text())
    # Who writes one by hand knows nothing of our checksum.
    del told["crc32"]
    for file in ("../../../../secret", "/etc/passwd", "nothing.jsonl", ""):
        told["files"][".jsonl"]["file"] = file
        (folder / f"4-{NOW_MS}.json").write_text(json.dumps(told))
        with pytest.raises(BackupDamaged):
            backups.read(DEFAULT_USER, backups.entries(DEFAULT_USER, CHAT_ID)[0])
    for broken in ({**told, "chat_id": OTHER_ID}, {**told, "taken_ms": 7}, {**told, "format": 2}, {}):
        (folder / f"4-{NOW_MS}.json").write_text(json.dumps(broken))
        assert all(one.is_piece for one in backups.entries(DEFAULT_USER, CHAT_ID))
    with pytest.raises(FileMissing):
        backups.read(DEFAULT_USER, Manifest(**{
            **{name: getattr(manifest, name) for name in manifest.__struct_fields__}, "chat_id": "../" * 12
        }))
    assert backups.entries(DEFAULT_USER, "..") == []


def test_a_manifest_that_is_not_as_it_was_written_is_mended_or_none_z10(tmp_path: Path) -> None:
    """[X12]: one bit is turned back; more, or bytes that are no text, make its files pieces, which are still there."""
    put(tmp_path)
    files = store(tmp_path)
    backups = BackupFolder(files)
    manifest = backups.take(source(files), "demand", NOW_MS).manifest
    path = tmp_path / DEFAULT_USER / "backups/tellback" / CHAT_ID / f"4-{NOW_MS}.json"
    whole = path.read_bytes()
    assert json.loads(whole)["crc32"]
    told = 0
    for what, damaged in some(chain(flips(whole), truncations(whole), sectors(whole)), whole, "manifest"):
        path.write_bytes(damaged)
        (found,) = backups.entries(DEFAULT_USER, CHAT_ID)
        assert found == manifest or found.is_piece, what
        told += found.is_piece
    assert told
    path.write_bytes(whole.replace(b"demand", b"\xff\xfemand"))
    assert backups.entries(DEFAULT_USER, CHAT_ID)[0].is_piece
    lines = whole.split(b"\n")
    path.write_bytes(b"\n".join([*lines[:-4], lines[-4].rstrip(b","), *lines[-2:]]))
    assert backups.entries(DEFAULT_USER, CHAT_ID) == [manifest], "as an earlier version wrote it"


def test_a_file_that_is_not_as_it_is_known_is_no_backup_z1(tmp_path: Path) -> None:
    """[Z1]: another program changed it; its save is adopted first."""
    put(tmp_path)
    files = store(tmp_path)
    known = source(files)
    for lines, states in ((LINES + b"x", {"memory": STATE}), (LINES, {"memory": b"[]"})):
        put(tmp_path, lines=lines, **states)
        with pytest.raises(OutsideEdit):
            BackupFolder(files).take(known, "demand", NOW_MS)
    put(tmp_path)
    (tmp_path / DEFAULT_USER / "chats/アリス/はじめまして.jsonl").unlink()
    with pytest.raises(OutsideEdit, match="is gone"):
        BackupFolder(files).take(known, "demand", NOW_MS)
    assert standing(tmp_path) == {}


def prepared(data: Path, fs: Fs) -> tuple[FileStore, BackupFolder, Manifest]:
    put(data, memory=b"1")
    files = store(data, fs)
    backups = BackupFolder(files)
    first = backups.take(source(files, 3), "schedule", NOW_MS - 60_000).manifest
    put(data, lines=LINES + b"\n", memory=b"1")
    return files, backups, first


def whole(data: Path, first: Manifest) -> list[Manifest]:
    """What a new process finds: every manifest can be read, and the earlier backup is there."""
    backups = BackupFolder(store(data))
    store(data).clean_temporaries(DEFAULT_USER)
    found = [one for one in backups.entries(DEFAULT_USER, CHAT_ID) if not one.is_piece]
    for one in found:
        backups.read(DEFAULT_USER, one)
    assert first in found
    return found


def full() -> None:
    raise OSError(errno.ENOSPC, "injected")


def die_of(fs: InjectedFs) -> Callable[[], None]:
    return fs.die


@pytest.mark.parametrize("how", ["crash", "full"])
def test_a_crash_or_a_full_disk_at_any_call_leaves_all_of_it_or_nothing_z8(tmp_path: Path, how: str) -> None:
    """[Z8]: of a backup; the earlier ones stay, and the next try goes through."""
    for at in range(1, 1000):
        data, fs = tmp_path / f"{at}", InjectedFs()
        files, backups, first = prepared(data, fs)
        wanted = source(files)
        fs.arm(at, die_of(fs) if how == "crash" else full)
        with contextlib.suppress(SimulatedCrash, OSError):
            backups.take(wanted, "schedule", NOW_MS)
        if not fs.reached:
            break
        assert len(whole(data, first)) in (1, 2)
        again = BackupFolder(store(data)).take(wanted, "schedule", NOW_MS + 1).manifest
        assert BackupFolder(store(data)).read(DEFAULT_USER, again) == {
            ".jsonl": LINES + b"\n", ".luker-state.memory.json": b"1"
        }
        assert len(whole(data, first)) == 2
    assert 20 < at < 999


def test_a_crash_at_any_call_of_a_thinning_leaves_whole_backups_z8(tmp_path: Path) -> None:
    """[Z8]: what stays is whole, and the next try removes the rest."""
    for at in range(1, 1000):
        data, fs = tmp_path / f"{at}", InjectedFs()
        files, backups, _first = prepared(data, fs)
        middle = backups.take(source(files), "schedule", NOW_MS).manifest
        put(data, lines=LINES + b"\n", memory=b"2")
        last = backups.take(source(files, 5), "schedule", NOW_MS + 60_000).manifest
        del middle
        fs.arm(at, die_of(fs))
        with contextlib.suppress(SimulatedCrash):
            backups.thin(DEFAULT_USER, CHAT_ID, NOW_MS + 400 * DAY_MS, Policy())
        if not fs.reached:
            break
        whole(data, last)
        after = BackupFolder(store(data))
        after.thin(DEFAULT_USER, CHAT_ID, NOW_MS + 400 * DAY_MS, Policy())
        assert [one for one in after.entries(DEFAULT_USER, CHAT_ID) if not one.is_piece] == [last]
        assert len([one for one in after.entries(DEFAULT_USER, CHAT_ID) if one.is_piece]) <= 1
    assert 10 < at < 999
