"""Checkpoints: durable effects become lines and sidecars (STORAGE "User files")."""

from __future__ import annotations

from pathlib import Path

from tests.support.chat_desk import Desk


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
