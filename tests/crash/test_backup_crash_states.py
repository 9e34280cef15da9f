"""Every disk a power cut may leave of a backup and of a thinning: what is listed is whole, no earlier one is lost."""

from __future__ import annotations

import pytest

from tellback_protocol.ids import GroupChat, Version
from tellback_server.backup_folder import BackupFolder, FileSource, Manifest
from tellback_server.fs import Fs
from tellback_server.store.files import FileStore
from tellback_server.thinning import DAY_MS, Policy
from tests.support.chat_desk import SilentLogger
from tests.support.crash_states import Disk, StrictDisk, crash_states
from tests.support.journaled_states import JournaledDisk
from tests.support.recording_fs import RecordingFs
from tests.support.sim_fs import SimFs

USER = "default-user"
HOME = f"/data/{USER}/group chats"
CHAT_ID = "5a4b3c2d-1e0f-4a9b-8c7d-6e5f4a3b2c1d"
NOW_MS = 1_763_000_000_000
BASE: Disk = {
    "/data": None, "/data/.tellback": None, f"/data/{USER}": None, HOME: None,
    f"{HOME}/Old.jsonl": b'{"chat_metadata":{}}\n{"mes":"one"}\n', f"{HOME}/Old.luker-state.memory.json": b'{"a":1}',
}


def backups(fs: Fs) -> BackupFolder:
    return BackupFolder(FileStore(fs, "/data", (USER,), logger=SilentLogger()))


def take(fs: Fs, seq: int) -> Manifest:
    files = FileStore(fs, "/data", (USER,), logger=SilentLogger())
    version = Version(1, seq, f"11111111-1111-4111-8111-{seq:012d}")
    known = files.read_chat(USER, GroupChat("Old"))
    assert known is not None
    source = FileSource(
        user=USER, place=GroupChat("Old"), chat_id=CHAT_ID, version=version, head=version, file=known.identity,
        state_files={ns: state.identity for ns, state in files.read_states(USER, GroupChat("Old")).items()}, count=1,
    )
    return BackupFolder(files).take(source, "schedule", NOW_MS + seq * 60_000).manifest


def whole(disk: Disk) -> list[Manifest]:
    """What a start finds; every one of them can be read."""
    found = backups(SimFs(disk))
    manifests = [one for one in found.entries(USER, CHAT_ID) if not one.is_piece]
    for one in manifests:
        found.read(USER, one)
    return manifests


@pytest.mark.parametrize("disk_class", [StrictDisk, JournaledDisk], ids=lambda disk_class: disk_class.profile)
def test_a_power_cut_leaves_a_backup_whole_or_not_there_z8(disk_class: type[StrictDisk]) -> None:
    """[Z8]: the first of a chat, and one that shares a file with it."""
    fs = SimFs(BASE)
    earlier: list[Manifest] = []
    for seq in (1, 2):
        found = fs.disk()
        recording = RecordingFs(SimFs(found), found)
        made = take(recording, seq)
        states = 0
        for _done, disk in crash_states(recording, disk_class=disk_class):
            states += 1
            there = whole(disk)
            assert [one for one in there if one != made] == earlier
            assert {path: disk.get(path) for path in found if "backups" not in path} == {
                path: data for path, data in found.items() if "backups" not in path
            }
        assert states > 20
        inner = recording._inner
        assert isinstance(inner, SimFs)
        fs = SimFs(inner.disk())
        assert whole(fs.disk()) == [made, *earlier]
        earlier = [made, *earlier]
        fs.write_atomically(f"{HOME}/Old.jsonl", b'{"chat_metadata":{}}\n{"mes":"two"}\n')


@pytest.mark.parametrize("disk_class", [StrictDisk, JournaledDisk], ids=lambda disk_class: disk_class.profile)
def test_a_power_cut_in_a_thinning_leaves_what_stays_whole_z8(disk_class: type[StrictDisk]) -> None:
    """[Z8]: also when a manifest whose removal was not durable comes back; done again it ends at the same."""
    fs = SimFs(BASE)
    made = []
    for seq in (1, 2, 3):
        made.append(take(fs, seq))
        fs.write_atomically(f"{HOME}/Old.luker-state.memory.json", b'{"a":%d}' % (seq + 1))
    found = fs.disk()
    later_ms = NOW_MS + 400 * DAY_MS
    recording = RecordingFs(SimFs(found), found)
    backups(recording).thin(USER, CHAT_ID, later_ms, Policy())
    states = 0
    for _done, disk in crash_states(recording, disk_class=disk_class):
        states += 1
        assert made[-1] in whole(disk)
        again = SimFs(disk)
        backups(again).thin(USER, CHAT_ID, later_ms, Policy())
        assert whole(again.disk()) == [made[-1]]
    assert states > 3
