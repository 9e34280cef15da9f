"""Every disk a power cut may leave of a life write, against the redo (STORAGE "Logged operations")."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import msgspec
import pytest

from tellback_protocol.backups import BackupRestore
from tellback_protocol.ids import Version, provisional_chat_id
from tellback_protocol.life import branch_twig
from tellback_protocol.requests import ChatBranch, ChatRename, ChatRestore, OwnerName, OwnerRename, OwnerRestore
from tellback_protocol.stream import Stream
from tellback_server.backup_folder import BackupFolder, FileSource
from tellback_server.fs import FileMark, Fs
from tellback_server.loading import LoadedStream, load_chat
from tellback_server.log import Position, Record
from tellback_server.operations import Move, Operation, Replaced, carry_out
from tellback_server.planning import (
    delete_operation,
    place_of,
    plan_branch,
    plan_delete,
    plan_rename,
    plan_restore,
    rename_operation,
    restore_operation,
    stage_branch,
)
from tellback_server.registrar import Registrar
from tellback_server.restoring import plan_backup_restore
from tellback_server.store.files import FileStore
from tellback_server.store.held import FileState
from tests.support.chat_desk import SilentLogger
from tests.support.crash_states import Disk, StrictDisk, crash_states
from tests.support.journaled_states import JournaledDisk
from tests.support.recording_fs import RecordingFs
from tests.support.sim_fs import SimFs, SimNode

USER = "default-user"
HOME = f"/data/{USER}/group chats"
CARDS = f"/data/{USER}/characters"
TALKS = f"/data/{USER}/chats"
ODD = f"{HOME}/Old.luker-state.Odd One.json"
CHAT_ID = "5a4b3c2d-1e0f-4a9b-8c7d-6e5f4a3b2c1d"
ID_OF_OLD = provisional_chat_id(USER, "group:Old")
VERSION = Version(1, 1, "11111111-1111-4111-8111-111111111111")
LATER = Version(1, 2, "22222222-2222-4222-8222-222222222222")
STATES_MIN = {StrictDisk: 100, JournaledDisk: 20}
BASE: Disk = {
    "/data": None, "/data/.tellback": None, f"/data/{USER}": None, TALKS: None, HOME: None,
    f"/data/{USER}/groups": None, CARDS: None, f"{TALKS}/Alice": None,
    f"{CARDS}/Alice.png": b"a card", f"{CARDS}/Alice.state.memory.json": b'{"alice":1}',
    f"{TALKS}/Alice/Talk.jsonl": b'{"mes":"talk"}', f"{TALKS}/Alice/Talk.luker-state.mood.json": b'{"talk":1}',
    f"{HOME}/Old.jsonl": b'{"chat_metadata":{}}\n{"id":"m1","mes":"one"}\n',
    f"{HOME}/Old.luker-state.memory.json": b'{"a":1}',
    f"{HOME}/Old.luker-state.Odd One.json": b"[1]",
    f"{HOME}/Old.luker-state.mood__floor_log.json": b'{"version":1,"commits":[]}',
    f"{HOME}/Other.jsonl": b'{"chat_metadata":{}}',
    f"/data/{USER}/groups/7.json": b'{"id":"7","chats":["Other","Old"],"chat_id":"Old"}',
}


class NoLog:
    """A log that holds nothing."""

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        return iter(())

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int:
        return after_seq


def store(fs: Fs) -> FileStore:
    return FileStore(fs, "/data", (USER,), logger=SilentLogger())


def loaded(files: FileStore, name: str) -> tuple[Stream, FileState]:
    found = load_chat(files, NoLog(), USER, place_of(name), now_ms=1)
    assert isinstance(found, LoadedStream)
    return found.stream, found.file


def begun(what: str) -> tuple[Operation, Disk]:
    """An operation, and the disk that it finds."""
    fs = SimFs(BASE)
    files = store(fs)
    registrar = Registrar(files)
    name = "character:Alice" if what.startswith("owner") else "group:Old"
    stream, held = loaded(files, name)
    match what:
        case "backup-restore":
            return begun_backup_restore(files, registrar, stream, held), fs.disk()
        case "rename":
            plan = plan_rename(files, registrar, USER, name, ChatRename(name, "New"), 1)
            assert plan.facts.refused is None
            return rename_operation(plan, registrar, stream, held, VERSION, 1), BASE
        case "owner-rename":
            whose = OwnerRename(OwnerName(character="Alice"), "Alicia")
            plan = plan_rename(files, registrar, USER, name, whose, 1)
            assert plan.facts.refused is None
            return rename_operation(plan, registrar, stream, held, VERSION, 1), BASE
        case "branch":
            asked = ChatBranch(name, "m1", "New")
            plan = plan_branch(files, registrar, USER, name, asked, set(), CHAT_ID, VERSION.integrity, 1)
            twig = branch_twig(stream.chat, asked, "Old", CHAT_ID)
            operation = stage_branch(files, plan, stream, held, twig, VERSION, 1)
            return operation, fs.disk()
    plan = plan_delete(files, USER, name, stream, {}, with_chats=what.startswith("owner"))
    operation = delete_operation(plan, registrar, stream, held, VERSION, 1)
    if what.endswith("delete"):
        return operation, BASE
    carry_out(files, operation)
    registrar.put(operation.registered[0])
    back = ChatRestore(name, "New") if what == "restore" else OwnerRestore(OwnerName(character="Alice"))
    plan = plan_restore(files, registrar, USER, stream.chat_id, back, 2)
    assert plan.facts.refused is None
    return restore_operation(plan, registrar, stream, LATER, 2), fs.disk()


def begun_backup_restore(files: FileStore, registrar: Registrar, stream: Stream, held: FileState) -> Operation:
    """A backup is taken, then the chat, a state and the group change; what there is then is backed up, too."""
    backups = BackupFolder(files)

    def taken(version: Version, held: FileState) -> str:
        source = FileSource(
            user=USER, place=held.place, chat_id=stream.chat_id, version=version, head=version, file=held.identity,
            state_files=held.state_files, count=1, inherited=held.image.inherited,
        )
        return backups.take(source, "demand", version.seq).manifest.backup

    backup = taken(VERSION, held)
    files.fs.write_atomically(f"{HOME}/Old.jsonl", b'{"chat_metadata":{}}\n{"id":"m2","mes":"two"}\n')
    files.fs.write_atomically(f"{HOME}/Old.luker-state.memory.json", b'{"a":2}')
    files.fs.write_atomically(f"{HOME}/Old.luker-state.later.json", b'["came later"]')
    stream, held = loaded(files, "group:Old")
    taken(LATER, held)
    asked = BackupRestore("group:Old", backup)
    plan = plan_backup_restore(files, registrar, stream, asked, 3, live={}, chat_id="", integrity="")
    assert plan.facts.refused is None
    return plan.operation(files, registrar, stream, held, LATER, 3)


def replaced_on(one: Replaced, found: Disk, fs: SimFs) -> Replaced:
    """As `as_on`: the staged file and the one that it replaces are known by their bytes."""
    source, target = f"/data/{USER}/{one.source}", f"/data/{USER}/{one.target}"
    inode, was = one.inode, one.was
    for path in (source, target):
        stat = fs.stat(path) if path[-1] != "/" else None
        if stat is None:
            continue
        data = fs.read(path)
        if one.source and data == found[source]:
            inode = stat.inode
        elif data == found.get(target):
            was = FileMark(stat.size_bytes, stat.mtime_ns, stat.inode)
    return Replaced(one.source, one.target, inode, was)


def as_on(operation: Operation, found: Disk, fs: SimFs) -> Operation:
    """The same operation where inodes have the numbers that this disk gives: a file is known by its bytes, of which no
    two are equal.
    """
    numbers = SimFs(found)
    paths = {numbers.stat(path).inode: path for path in found if numbers.stat(path) is not None}  # type: ignore[union-attr]

    def renumbered(move: Move) -> Move:
        data = found[paths[move.inode]]
        for path in (move.source, move.target):
            full = f"/data/{USER}/{path}"
            stat = fs.stat(full) if path else None
            if stat is not None and fs.read(full) == data:
                return Move(move.source, move.target, stat.inode)
        return move

    return msgspec.structs.replace(
        operation, moves=[renumbered(move) for move in operation.moves],
        unlinked=[renumbered(move) for move in operation.unlinked],
        replaced=[replaced_on(one, found, fs) for one in operation.replaced],
        folder_moves=[folder_on(move, fs) for move in operation.folder_moves],
    )


def folder_on(move: Move, fs: SimFs) -> Move:
    """As `as_on`: nobody else makes folders here."""
    stat = fs.stat(f"/data/{USER}/{move.source}")
    return move if stat is None else Move(move.source, move.target, stat.inode)


def linked(disk: Disk) -> SimFs:
    """A file system on a computed disk, on which two names of one file are one file again."""
    fs = SimFs(disk)
    known: dict[bytes, SimNode] = {}
    for path, data in contents(disk).items():
        node = known.setdefault(data, fs._nodes[path])
        if node is not fs._nodes[path]:
            node.links += 1
            fs._nodes[path] = node
    return fs


def contents(disk: Disk) -> dict[str, bytes]:
    """Files without what is unfinished and goes at the next start."""
    return {path: data for path, data in disk.items() if data is not None and not path.endswith(".tellback-tmp")}


class Leaving(RecordingFs):
    """Empty folders stay: the disks that are computed know no removal of one, and no file depends on it."""

    def remove_directory(self, path: str) -> None:
        """See the class."""


LEFT = {
    "rename": f"{HOME}/Old", "delete": f"{HOME}/Old", "owner-delete": f"{CARDS}/Alice",
    "owner-rename": (f"{CARDS}/Alice", f"{TALKS}/Alice"),
    "restore": f"/data/{USER}/trash/", "owner-restore": f"/data/{USER}/trash/", "branch": "nothing",
    "backup-restore": f"{HOME}/Old.luker-state.later",
}
"""How the paths begin under which nothing is left."""
CAME = {
    "rename": {f"{HOME}/New.jsonl": f"{HOME}/Old.jsonl", f"{HOME}/New.luker-state.Odd One.json": ODD},
    "restore": {f"{HOME}/New.jsonl": f"{HOME}/Old.jsonl", f"{HOME}/New.luker-state.Odd One.json": ODD},
    "owner-rename": {f"{CARDS}/Alicia.png": f"{CARDS}/Alice.png",
                     f"{CARDS}/Alicia.state.memory.json": f"{CARDS}/Alice.state.memory.json",
                     f"{TALKS}/Alicia/Talk.jsonl": f"{TALKS}/Alice/Talk.jsonl"},
    "delete": {f"/data/{USER}/trash/1-{ID_OF_OLD}/group chats/Old.jsonl": f"{HOME}/Old.jsonl"},
    "owner-delete": {},
    "owner-restore": {f"{CARDS}/Alice.png": f"{CARDS}/Alice.png",
                      f"{TALKS}/Alice/Talk.jsonl": f"{TALKS}/Alice/Talk.jsonl"},
    "backup-restore": {f"{HOME}/Old.jsonl": f"{HOME}/Old.jsonl", ODD: ODD},
    "branch": {f"{HOME}/New.luker-state.Odd One.json": ODD, f"{HOME}/Old.jsonl": f"{HOME}/Old.jsonl"},
}
"""Where files stand afterwards, by where they stood."""


@pytest.mark.parametrize("disk_class", STATES_MIN, ids=lambda disk_class: disk_class.profile)
@pytest.mark.parametrize("what", LEFT)
def test_whatever_a_power_cut_leaves_the_redo_ends_at_the_same_files_j3(
    what: str, disk_class: type[StrictDisk]
) -> None:
    """[J3] [F11]"""
    operation, found = begun(what)
    recording = Leaving(SimFs(found), found)
    carry_out(store(recording), as_on(operation, found, SimFs(found)))
    inner = recording._inner
    assert isinstance(inner, SimFs)
    wanted = contents(inner.disk())
    assert not [path for path in wanted if path.startswith(LEFT[what]) and "chat_sync" not in path]
    for path, before in CAME[what].items():
        assert wanted[path] == BASE[before], path
    if what == "rename":
        group = wanted[f"/data/{USER}/groups/7.json"]
        assert json.loads(group)["chats"] == ["Other", "New"]
    states = 0
    mine = {
        data for path, data in contents(found if what == "backup-restore" else BASE).items() if "groups/" not in path
    }
    for _done, disk in crash_states(recording, disk_class=disk_class):
        states += 1
        assert mine <= set(contents(disk).values()), "nothing may be lost at any moment"
        fs = linked(disk)
        for _again in range(2):
            carry_out(store(fs), as_on(operation, found, fs))
            assert contents(fs.disk()) == wanted
    print(f"{what} on {disk_class.profile}: {states} disks")
    assert states >= STATES_MIN[disk_class]


class NoSync(RecordingFs):
    """Planted bug: folders are never synced."""

    def fsync_directory(self, path: str) -> None:
        self._inner.fsync_directory(path)


def test_a_missing_sync_of_the_folder_is_caught() -> None:
    operation, _found = begun("rename")
    recording = NoSync(SimFs(BASE), BASE)
    carry_out(store(recording), operation)
    lost: Callable[[Disk], bool] = lambda disk: BASE[f"{HOME}/Old.jsonl"] not in contents(disk).values()  # noqa: E731
    assert any(lost(disk) for _done, disk in crash_states(recording))
