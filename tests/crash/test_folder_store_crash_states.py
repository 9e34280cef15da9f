"""Every disk a power cut may leave of the store of plain files: each owner is as before a call, or as after it."""

from __future__ import annotations

import os
import random

import msgspec
import pytest

from tellback_server.contract import Saved, same
from tellback_server.store.base import StoredChat, StoreError
from tellback_server.store.folder import FolderStore
from tests.support.crash_states import Disk, StrictDisk
from tests.support.recording_fs import Mark, RecordingFile, RecordingFs
from tests.support.sim_fs import SimFs

PATH = "/data/store"
EVERY = 1 if os.environ.get("TELLBACK_CRASH_STATES") == "all" else 9
Owners = dict[str, StoredChat]


def recorded() -> tuple[RecordingFs, list[Owners]]:
    """A workload, with a mark behind every call that returned, and what stood there then."""
    chance = random.Random(7)
    base: Disk = {"/data": None}
    recording = RecordingFs(SimFs(base), base)
    store = FolderStore(PATH, recording)
    store.check()
    owners: Owners = {}
    moments: list[Owners] = [{}]
    recording.mark("done", 0)

    def done() -> None:
        moments.append(dict(owners))
        recording.mark("done", len(moments) - 1)

    chats = [Saved("character:A/One"), Saved("character:A/Two"), Saved("group:Three"), Saved("preset:context/Four")]
    for saved in chats[:3]:
        saved.append(2)
    for step in range(24):
        saved = chats[step % len(chats)]
        if step >= len(chats) and not saved.name.startswith("preset:"):
            saved.change(chance)
        if saved.name.startswith("group"):
            saved.append()
        owners[saved.chat_id] = saved.save(store, whole=step % 7 == 6)
        done()
        if step % 5 == 4:
            # Names go round among the first two, one of them is nobody's for a while.
            first, second = chats[:2]
            for one, name in ((first, second.name), (second, first.name)):
                store.rename("default-user", one.chat_id, name)
                owners[one.chat_id] = msgspec.structs.replace(owners[one.chat_id], name=name)
                done()
            first.name, second.name = second.name, first.name
        if step == 13:
            store.delete("default-user", chats[2].chat_id, chats[2].head)
            del owners[chats[2].chat_id]
            done()
            chats[2] = Saved("group:Three")
    return recording, moments


def opened(disk: Disk) -> tuple[SimFs, Owners]:
    fs = SimFs(disk)
    store = FolderStore(PATH, fs)
    store.check()
    listed = list(store.list("default-user"))
    found = {one.chat_id: store.load("default-user", one.chat_id) for one in listed}
    return fs, {chat_id: value for chat_id, value in found.items() if value is not None}


def is_legal(found: Owners, before: Owners, after: Owners) -> None:
    for chat_id in found.keys() | before.keys() | after.keys():
        value = found.get(chat_id)
        if value is None:
            assert chat_id not in before or chat_id not in after, f"{chat_id} is lost"
        else:
            allowed = [one[chat_id] for one in (before, after) if chat_id in one]
            assert allowed, f"{chat_id} came back"
            same(value, next((one for one in allowed if (one.head, one.name) == (value.head, value.name)), allowed[0]))


def count_legal(every: int) -> int:
    """How many disks were looked at, each of them legal."""
    recording, moments = recorded()
    chance = random.Random(3)
    disk = StrictDisk(recording)
    at, states = -1, 0
    for call in recording.trace:
        disk.apply(call)
        if isinstance(call, Mark):
            at = call.value
        for number, left in enumerate(disk.disks(chance)):
            if number % every and not isinstance(call, Mark):
                continue
            states += 1
            if at < 0:
                opened(left)
                continue
            fs, found = opened(left)
            is_legal(found, moments[at], moments[min(at + 1, len(moments) - 1)])
            if states % 20 == 0:
                # Whoever recovers writes; a second start finds the same.
                again = FolderStore(PATH, fs)
                again.check()
                assert {one.chat_id for one in again.list("default-user")} == found.keys()
                for chat_id, value in found.items():
                    same(again.load("default-user", chat_id), value)
    return states


def test_st2_a_power_cut_leaves_every_owner_as_before_or_as_after() -> None:
    assert count_legal(EVERY) > 700


@pytest.mark.parametrize(("kind", "name"), [(RecordingFile, "fsync"), (RecordingFs, "fsync_directory")])
def test_a_missing_sync_is_caught(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    monkeypatch.setattr(kind, name, lambda *_: None)
    with pytest.raises((AssertionError, StoreError)):
        count_legal(1)


def test_st2_what_was_saved_last_is_there_at_the_end() -> None:
    recording, moments = recorded()
    disk = StrictDisk(recording)
    for call in recording.trace:
        disk.apply(call)
    for left in disk.disks(random.Random(1)):
        _, found = opened(left)
        is_legal(found, moments[-1], moments[-1])
