"""Checkpoints: durable effects become lines and sidecars (STORAGE "User files")."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import zlib
from pathlib import Path

import orjson
import pytest

from tellback_server.checkpoint import CheckpointFailed, CheckpointJob, OutsideEdit, checkpoint
from tests.support.chat_desk import Desk
from tests.support.injected_fs import InjectedFs
from tests.support.real_data import tree


async def test_appends_reach_the_file_and_a_restart_reads_them(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one", "two")
    await desk.checkpoint()
    await desk.append("three")
    await desk.checkpoint()
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    head = desk.stream.head

    loaded = await desk.restart()

    assert loaded.adoption is None
    assert desk.texts() == ["one", "two", "three"]
    assert desk.stream.head == head
    assert desk.path.read_bytes().count(b"\n") == 4
    assert desk.stream.states["memory"].data == b'{"a":1}'
    desk.stop()


async def test_nothing_pending_is_no_checkpoint(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    assert await desk.checkpoint() is not None
    before = tree(desk.data / "default-user")

    assert await desk.checkpoint() is None

    assert tree(desk.data / "default-user") == before
    desk.stop()


async def test_an_append_writes_only_what_is_new(tmp_path: Path) -> None:
    """[F2] The cost follows the change: the same file, grown by one line."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    stat, content = desk.path.stat(), desk.path.read_bytes()
    (message_id,) = await desk.append("two")

    done = await desk.checkpoint()

    assert done is not None
    line = desk.stream.chat.messages[message_id] + b"\n"
    assert done.size_bytes == len(line)
    assert desk.path.read_bytes() == content + line
    assert desk.path.stat().st_ino == stat.st_ino
    assert done.identity is not None
    assert done.identity.crc32 == zlib.crc32(content + line)
    desk.stop()


async def test_commits_that_come_during_a_checkpoint_are_in_the_next_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    job = CheckpointJob.take(desk.stream, desk.held, 1)
    assert job is not None
    (first,) = desk.stream.chat.order()
    await desk.patch(first, mes="changed meanwhile")
    await desk.append("two")

    done = await checkpoint(job, desk.files, desk.log, desk.executor, lambda: desk.stream.head.seq)
    done.install(desk.stream, desk.held)
    assert b"changed" not in desk.path.read_bytes()
    await desk.checkpoint()

    assert desk.held.head == desk.stream.head
    assert [value["mes"] for value in map(orjson.loads, desk.path.read_bytes().splitlines()[1:])] == [
        "changed meanwhile", "two",
    ]
    desk.stop()


async def test_a_failed_sync_is_never_believed(tmp_path: Path) -> None:
    """[F6] The bytes are cut off again and the next attempt makes a new file (RELIABILITY fact 1)."""
    fs = InjectedFs()
    desk = Desk(tmp_path / "data", fs=fs)
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    content, inode = desk.path.read_bytes(), desk.path.stat().st_ino
    await desk.append("two")
    fs.fail_syncs = True
    with pytest.raises(CheckpointFailed):
        await desk.checkpoint()
    fs.fail_syncs = False
    assert desk.path.read_bytes() == content

    await desk.checkpoint()

    assert desk.path.stat().st_ino != inode
    assert desk.path.read_bytes().count(b"\n") == 3
    loaded = await desk.restart()
    assert loaded.adoption is None
    desk.stop()


async def test_the_piece_of_an_append_that_a_full_disk_took_is_cut_off(tmp_path: Path) -> None:
    """[F6] A short write is how a full disk begins; the file is as it was, for other programs too."""
    fs = InjectedFs()
    desk = Desk(tmp_path / "data", fs=fs)
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    content = desk.path.read_bytes()
    await desk.append("two")
    fs.short_writes = True
    with pytest.raises(CheckpointFailed) as caught:
        await desk.checkpoint()
    fs.short_writes = False

    assert caught.value.cause.errno == errno.ENOSPC
    assert desk.path.read_bytes() == content
    await desk.checkpoint()
    assert desk.path.read_bytes().count(b"two") == 1
    assert desk.stream.head.epoch == 1
    desk.stop()


async def test_a_cancelled_checkpoint_is_not_taken_for_an_edit(tmp_path: Path) -> None:
    """[F8] The step in its thread ends; what it wrote is ours."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    await desk.append("two")
    task = asyncio.ensure_future(desk.checkpoint())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    try:
        await desk.checkpoint()
    except OutsideEdit:
        assert (await desk.adopt()).adoption is None
        await desk.checkpoint()
    assert desk.texts() == ["one", "two"]
    assert desk.path.read_bytes().count(b"two") == 1
    loaded = await desk.restart()
    assert loaded.adoption is None
    desk.stop()


SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from tests.support.chat_desk import Desk

async def main():
    desk = Desk(Path(sys.argv[1]))
    await desk.open()
    first = desk.stream.chat.order()[0]
    await desk.append("three")
    if sys.argv[2] == "rewrite":
        await desk.patch(first, mes="changed")
    await desk.state("memory", {"a": 1})
    print("acknowledged", flush=True)
    await desk.checkpoint()
    print("checkpointed", flush=True)

asyncio.run(main())
"""

POINTS = [
    "after_check", "after_intent", "before_append", "after_append", "after_append_sync", "before_write", "after_write",
    "before_swap", "after_swap", "after_swap_sync", "after_chat", "before_state", "after_state", "before_sync_file",
    "after_sync_file",
]


@pytest.mark.parametrize("kind", ["append", "rewrite"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_process_killed_at_every_failpoint_is_recovered(tmp_path: Path, point: str, kind: str) -> None:
    """[F8] kill -9, for real, with real syncs."""
    data = tmp_path / "data"
    setup = Desk(data)
    await setup.create()
    await setup.append("one", "two")
    await setup.checkpoint()
    await setup.restart()
    setup.stop()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        str(data),
        kind,
        env={**os.environ, "TELLBACK_FAILPOINTS": f"checkpoint.{point}=kill"},
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    other_kind = ("write", "swap") if kind == "append" else ("append",)
    reaches = not any(word in point for word in other_kind)
    assert b"acknowledged" in output, errors
    assert (process.returncode == -9) == reaches, errors

    desk = Desk(data)
    loaded = await desk.open()

    assert loaded.adoption is None
    assert desk.texts() == ["one" if kind == "append" else "changed", "two", "three"]
    assert desk.stream.states["memory"].data == b'{"a":1}'
    await desk.checkpoint()
    assert not list(desk.path.parent.glob(".tellback-swap*"))
    assert desk.path.read_bytes().count(b"\n") == 4
    desk.stop()
