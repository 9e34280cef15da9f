"""Every disk a power cut may leave of a rename and of a deletion, against the redo (STORAGE "Logged operations")."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tellback_protocol.ids import Version
from tellback_protocol.requests import ChatRename
from tellback_server.fs import Fs
from tellback_server.loading import LoadedStream, load_chat
from tellback_server.log import Position, Record
from tellback_server.operations import Operation, carry_out
from tellback_server.planning import chat_of, delete_operation, plan_delete, plan_rename, rename_operation
from tellback_server.registrar import Registrar
from tellback_server.store.files import FileStore
from tests.support.chat_desk import SilentLogger
from tests.support.crash_states import Disk, StrictDisk, crash_states
from tests.support.journaled_states import JournaledDisk
from tests.support.recording_fs import RecordingFs
from tests.support.sim_fs import SimFs

USER = "default-user"
HOME = f"/data/{USER}/group chats"
STATES_MIN = {StrictDisk: 100, JournaledDisk: 20}
BASE: Disk = {
    "/data": None, "/data/.tellback": None, f"/data/{USER}": None, f"/data/{USER}/chats": None, HOME: None,
    f"/data/{USER}/groups": None,
    f"{HOME}/Old.jsonl": b'{"chat_metadata":{}}\n{"mes":"one"}\n',
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


def store(fs: Fs) -> FileStore:
    return FileStore(fs, "/data", (USER,), logger=SilentLogger())


def operation_of(what: str) -> Operation:
    files = store(SimFs(BASE))
    place = chat_of("group:Old")
    loaded = load_chat(files, NoLog(), USER, place, now_ms=1)
    assert isinstance(loaded, LoadedStream)
    stream, held = loaded.stream, loaded.file
    registrar = Registrar(files)
    version = Version(1, 1, "11111111-1111-4111-8111-111111111111")
    if what == "rename":
        request = ChatRename("group:Old", "New")
        plan = plan_rename(files, registrar, USER, "group:Old", request, 1)
        assert plan.facts.refused is None
        return rename_operation(plan, registrar, stream, held, version, 1)
    return delete_operation(plan_delete(files, USER, "group:Old", stream, {}), registrar, stream, held, version, 1)


def contents(disk: Disk) -> dict[str, bytes]:
    """Files without what is unfinished and goes at the next start."""
    return {path: data for path, data in disk.items() if data is not None and not path.endswith(".tellback-tmp")}


@pytest.mark.parametrize("disk_class", STATES_MIN, ids=lambda disk_class: disk_class.profile)
@pytest.mark.parametrize("what", ["rename", "delete"])
def test_whatever_a_power_cut_leaves_the_redo_ends_at_the_same_files_j3(
    what: str, disk_class: type[StrictDisk]
) -> None:
    """[J3] [F11]"""
    operation = operation_of(what)
    recording = RecordingFs(SimFs(BASE), BASE)
    carry_out(store(recording), operation)
    inner = recording._inner
    assert isinstance(inner, SimFs)
    wanted = contents(inner.disk())
    assert not [path for path in wanted if path.startswith(f"{HOME}/Old")]
    if what == "rename":
        assert wanted[f"{HOME}/New.jsonl"] == BASE[f"{HOME}/Old.jsonl"]
        assert wanted[f"{HOME}/New.luker-state.Odd One.json"] == b"[1]"
        assert b'"chats": ["Other", "New"]' in wanted[f"/data/{USER}/groups/7.json"].replace(b'","', b'", "').replace(
            b'":[', b'": [')
    states = 0
    for _done, disk in crash_states(recording, disk_class=disk_class):
        states += 1
        kept = set(contents(disk).values())
        assert {BASE[f"{HOME}/Old.jsonl"], b'{"a":1}', b"[1]"} <= kept, "nothing may be lost at any moment"
        fs = SimFs(disk)
        carry_out(store(fs), operation)
        assert contents(fs.disk()) == wanted
        carry_out(store(fs), operation)
        assert contents(fs.disk()) == wanted
    print(f"{what} on {disk_class.profile}: {states} disks")
    assert states >= STATES_MIN[disk_class]


class NoSync(RecordingFs):
    """Planted bug: folders are never synced."""

    def fsync_directory(self, path: str) -> None:
        self._inner.fsync_directory(path)


def test_a_missing_sync_of_the_folder_is_caught() -> None:
    operation = operation_of("rename")
    recording = NoSync(SimFs(BASE), BASE)
    carry_out(store(recording), operation)
    lost: Callable[[Disk], bool] = lambda disk: BASE[f"{HOME}/Old.jsonl"] not in contents(disk).values()  # noqa: E731
    assert any(lost(disk) for _done, disk in crash_states(recording))
