"""Every disk a power cut may leave of the reference workload, against the start of the whole server (F4, F5).

`python -m tests.campaign` runs them all; docs/FAULTS.md has its figures. Here a seeded part runs. The
enumeration is shown to catch bugs that are planted in the server and under it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from tellback_server.fs import File
from tellback_server.store import touch
from tests.campaign.__main__ import CUTS, PROFILES, hushed
from tests.campaign.states import Judge, Taken, Violation, states_of
from tests.campaign.workload import BASE, TALK, InodeRecordingFs, record
from tests.support.crash_states import StrictDisk
from tests.support.headless import Headless, Wire, headless
from tests.support.injected_fs import SimulatedCrash
from tests.support.recording_fs import RecordingFile
from tests.support.sim_fs import SimFs

EVERY = {"strict": 7, "journaled": 36}
"""Every how many of the states are started on, a tenth of the campaign; TELLBACK_SERVER_STATES=all for each."""
EVERYTHING = os.environ.get("TELLBACK_SERVER_STATES") == "all"
PARTS = {"strict": 4, "journaled": 1}
"""So that the workers share them."""
STATES_MIN = {"strict": 2400, "journaled": 90}
"""Of a part."""
CUT_EVERY = 50


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with hushed():
        yield


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("profile", "part"), [(profile, part) for profile in PROFILES for part in range(PARTS[profile])]
)
async def test_a_start_on_whatever_a_power_cut_leaves_shows_all_that_was_told_g1(profile: str, part: int) -> None:
    """[J3]: the whole server, on disks taken evenly from all of a day with three lives; some starts are cut again."""
    seed = 3
    taken = Taken.of(await record(seed), seed)
    judge = Judge(taken)
    total = states = cuts = 0
    for number, done, disk in states_of(taken, PROFILES[profile]):
        total += 1
        if (number % EVERY[profile] and not EVERYTHING) or number // EVERY[profile] % PARTS[profile] != part:
            continue
        await judge.first(done, disk, thorough=states % 20 == 0)
        if states % CUT_EVERY == 0:
            cuts += await judge.second(done, disk, CUTS, number, PROFILES[profile])
        states += 1
    print(f"{profile}: {states} of {total} disks, {cuts} of cut starts")
    assert states >= STATES_MIN[profile]
    assert cuts >= states // CUT_EVERY * CUTS * 0.8


async def test_a_chat_that_has_only_begun_keeps_the_version_that_was_told() -> None:
    """[V3] [D1]: no message yet, no file yet; a kill."""
    fs = SimFs(BASE)
    async with headless(fs) as app:
        tab = await Wire.join(app)
        made = await tab.ask("open", chat=TALK, since=None, create=True)
    async with headless(fs) as app:
        tab = await Wire.join(app)
        opened = await tab.ask("open", chat=TALK, since=None)
        assert (opened["version"], opened["head"]) == (made["version"], made["head"])
        answer = await tab.ask("append", chat=TALK, op=1, base=made["version"]["integrity"], messages=[{"mes": "one"}])
        assert answer["type"] == "ack", answer


async def test_what_a_cut_leaves_half_written_goes_at_the_next_start() -> None:
    """In every folder that the server writes to."""
    fs = SimFs(BASE)
    async with headless(fs) as app:
        tab = await Wire.join(app)
        await tab.ask("open", chat=TALK, since=None, create=True)
        await app.fold()
        await app.collect()
    root = "/data/default-user"
    fs.make_directories(f"{root}/trash/1-gone")
    folders = {os.path.dirname(path) for path in fs.files() if ".tellback" in path or "default-user" in path}
    for folder in {*folders, f"{root}/groups", f"{root}/trash/1-gone"} - {"/data/.tellback"}:
        fs.create(f"{folder}/.something.0123456789abcdef.tellback-tmp").close()
    async with headless(fs):
        assert not [path for path in fs.files() if path.endswith("tellback-tmp") and "/spare." not in path]


# -- planted bugs


class NoDirectorySync(InodeRecordingFs):
    """Names in users' folders are never synced."""

    def fsync_directory(self, path: str) -> None:
        if "default-user" not in path:
            super().fsync_directory(path)


class Unsynced(RecordingFile):
    """Its syncs do nothing."""

    __slots__ = ()

    def fdatasync(self) -> None:
        """See the class."""

    def fsync(self) -> None:
        """See the class."""


class NoFileSync(InodeRecordingFs):
    """What is written beside a user's file is renamed over it unsynced."""

    def create(self, path: str) -> File:
        file = super().create(path)
        if "default-user" in path:
            file.__class__ = Unsynced
        return file


class NoAppendSync(InodeRecordingFs):
    """The watermark is written before the lines that it tells of are on the disk."""

    def open_append(self, path: str) -> File:
        file = super().open_append(path)
        file.__class__ = Unsynced
        return file


class NoLogSync(Headless):
    """The log tells what it never synced."""

    def __init__(self, fs: SimFs, **settings: object) -> None:
        super().__init__(fs, unsafe_no_sync=True, **settings)


async def caught(every: int = 40, **planted: type) -> str:
    """The first violation in every nth state, or nothing."""
    taken = Taken.of(await record(0, **planted), 1)
    judge = Judge(taken)
    for number, done, disk in states_of(taken, StrictDisk):
        if number % every:
            continue
        try:
            await judge.first(done, disk)
        except Violation as violation:
            return str(violation)
    return ""


@pytest.mark.parametrize("planted", [NoDirectorySync, NoFileSync, NoAppendSync])
async def test_a_sync_that_is_left_out_is_caught(planted: type[InodeRecordingFs]) -> None:
    assert await caught(fs_class=planted)


async def test_an_ack_before_the_sync_is_caught() -> None:
    assert await caught(app_class=NoLogSync)


async def cut_in_an_append(tail: bytes) -> dict[str, Any]:
    """What a start shows when a kill left `tail` where the server was appending a second message."""
    fs = SimFs(BASE)
    path = "/data/default-user/chats/Alice/Talk.jsonl"
    async with headless(fs) as app:
        tab = await Wire.join(app)
        await tab.ask("open", chat=TALK, since=None, create=True)
        await tab.ask("append", chat=TALK, op=1, base="*", messages=[{"mes": "one"}])
        await app.fold()
        before = len(fs.content(path))
        await tab.ask("append", chat=TALK, op=2, base="*", messages=[{"mes": "two " * 300}])
        with patch.object(touch, "failpoint", side_effect=SimulatedCrash), contextlib.suppress(SimulatedCrash):
            await app.fold()
        fs.content(path)[before:] = tail
    async with headless(fs) as app:
        return await (await Wire.join(app)).ask("open", chat=TALK, since=None)


@pytest.mark.parametrize("tail", [b"\x94\x00\xfe" * 200, b"\xff", b"\x00\x01\xfe" * 100, b"\0" * 700])
async def test_garbage_where_we_appended_is_no_outside_edit_f8(tail: bytes) -> None:
    """[K3]: the size was written, the data was not. Another program writes text."""
    opened = await cut_in_an_append(tail)
    assert [message["mes"] for message in opened["messages"]] == ["one", "two " * 300]
    assert opened["version"]["epoch"] == 1
    assert "read_only" not in opened


@pytest.mark.parametrize("tail", [b'{"mes":"written by hand"}\n', '{"mes":"é'.encode()[:-1], "ж".encode()[1:]])
async def test_text_where_we_appended_is_an_outside_edit_f8(tail: bytes) -> None:
    """[K3]: also when it ends inside a letter."""
    opened = await cut_in_an_append(tail)
    assert opened["version"]["epoch"] == 2
