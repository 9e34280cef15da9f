"""Files, log and session file that contradict each other: the load does what a check tells, a repair ends it (X13)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version
from tellback_server.loading import LoadedStream
from tellback_server.store.marks import SyncMark, Watermark, mark_fields, sync_of
from tests.support.chat_desk import Desk
from tests.support.damage import checked, codes, repaired, rot
from tests.support.server import TabClient, running, texts


def log_and_term(data: Path) -> list[Path]:
    return [data / ".tellback" / "log", data / ".tellback" / "term"]


def copied(data: Path, to: Path) -> Path:
    """The log as it is now."""
    shutil.copytree(data / ".tellback", to)
    return to


def put_back(data: Path, older: Path, *, sessions: bool = False) -> None:
    """An older copy of the log in the place of the log."""
    for path in log_and_term(data):
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(older / path.name, path)
        else:
            shutil.copy2(older / path.name, path)
    if sessions:
        shutil.rmtree(data / ".tellback" / "sessions", ignore_errors=True)


def tree(data: Path) -> dict[str, bytes]:
    """Every file of the user's."""
    below = data / "default-user" if (data / "default-user").exists() else data
    return {
        str(path.relative_to(below)): path.read_bytes() for path in sorted(below.rglob("*"))
        if path.is_file() and ".tellback" not in path.parts
    }


async def ahead(tmp_path: Path, *, pending: bool = False) -> tuple[Desk, Path]:
    """A chat whose log is an older copy than its files."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    await desk.append("one", "two")
    await desk.state("memory", {"seen": 1})
    await desk.checkpoint()
    if pending:
        await desk.append("waits")
    desk.stop()
    older = copied(data, tmp_path / "older")
    await desk.open()
    await desk.append("three")
    await desk.state("memory", {"seen": 2})
    await desk.checkpoint()
    desk.stop()
    put_back(data, older)
    return desk, data


@pytest.mark.parametrize("pending", [False, True])
async def test_a_chat_sync_ahead_of_the_log_is_no_newer_truth(tmp_path: Path, pending: bool) -> None:
    """[X4, X13] Served as the files hold it, in an epoch that nobody saw, read-only, without a byte written; a repair
    ends it, and then writes go on.
    """
    desk, data = await ahead(tmp_path, pending=pending)
    head, before = desk.stream.head, tree(data)
    texts = desk.texts()
    for _turn in range(2):
        loaded = await desk.open()
        assert [one.line for one in loaded.stream.damage] == [0]
        assert "the log ends at" in loaded.stream.damage[0].problem
        assert (loaded.stream.head.epoch, loaded.stream.head.seq) == (head.epoch + 1, head.seq)
        shown = loaded.stream.head.integrity
        assert (desk.texts(), loaded.records, loaded.adoption) == (texts, [], None)
        assert await desk.checkpoint() is None
        with pytest.raises(Refused):
            await desk.append("four")
        desk.stop()
        assert tree(data) == before
    assert "sync-ahead-of-log" in codes(data)
    repaired(data)
    assert codes(data) == set()
    loaded = await desk.open()
    assert loaded.stream.damage == []
    assert loaded.stream.head.epoch == head.epoch + 1
    assert loaded.stream.head.integrity == shown, "what was shown read-only is what goes on"
    assert desk.texts() == texts
    await desk.append("four")
    await desk.checkpoint()
    loaded = await desk.restart()
    assert (desk.texts()[-1], loaded.stream.damage, loaded.adoption) == ("four", [], None)
    assert loaded.stream.head.epoch == head.epoch + 1
    desk.stop()
    assert codes(data) == set()
    assert repaired(data).choices == []


async def test_files_and_chat_sync_of_another_time_than_the_log_are_told_whatever_their_bytes_are(
    tmp_path: Path,
) -> None:
    """[X13] Also when another program wrote the chat's file since: nothing is adopted before somebody decides."""
    desk, data = await ahead(tmp_path)
    desk.path.write_bytes(desk.path.read_bytes() + b'\n{"mes":"theirs"}')
    before = tree(data)
    loaded = await desk.open()
    assert [one.line for one in loaded.stream.damage] == [0]
    assert desk.texts()[-1] == "theirs"
    desk.stop()
    assert tree(data) == before
    repaired(data)
    await desk.open()
    assert desk.stream.damage == []
    assert desk.texts()[-1] == "theirs"
    desk.stop()


async def test_a_log_that_knows_nothing_of_a_chat_is_no_contradiction(tmp_path: Path) -> None:
    """[F8] The log was lost, or trimmed: chat_sync is what there is."""
    desk, data = await ahead(tmp_path)
    texts, head = desk.texts(), desk.stream.head
    shutil.rmtree(data / ".tellback")
    loaded = await desk.open()
    assert (loaded.stream.damage, desk.texts(), loaded.stream.head) == ([], texts, head)
    desk.stop()


async def test_two_files_that_say_that_they_are_one_chat_are_two(tmp_path: Path) -> None:
    """[X13] The one that the log names keeps the id; the other one is a copy, at the load and in a check."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    chat_id = desk.stream.chat_id
    desk.stop()
    for name in ("a copy", "z copy"):
        (desk.path.with_name(f"{name}.jsonl")).write_bytes(desk.path.read_bytes())
        sync = json.loads(desk.path.with_name("talk.luker-state.chat_sync.json").read_bytes())
        sync["tellback"]["name"] = f"character:Pip/{name}"
        # A program that writes names knows nothing of our checksum.
        del sync["tellback"]["crc32"]
        desk.path.with_name(f"{name}.luker-state.chat_sync.json").write_text(json.dumps(sync))
    told = {finding.path for finding in checked(data) if finding.code == "chat-id-duplicate"}
    assert {Path(path).name.partition(".")[0] for path in told} == {"a copy", "z copy"}
    desk.start()
    for name in ("talk", "a copy", "z copy"):
        desk.place = type(desk.place)("Pip", name)  # type: ignore[call-arg]
        loaded = desk.read()
        assert isinstance(loaded, LoadedStream)
        assert (loaded.stream.chat_id == chat_id) == (name == "talk")
    desk.stop()
    repaired(data)
    assert codes(data) == set()


async def test_of_two_files_that_nothing_else_knows_the_one_that_is_open_is_the_chat(tmp_path: Path) -> None:
    """[X13] The other one is an error that says what to do, never a second history under the same id."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    desk.stop()
    sync = desk.path.with_name("talk.luker-state.chat_sync.json")
    told = json.loads(sync.read_bytes())
    del told["tellback"]["crc32"]
    told["tellback"]["name"] = "character:Pip/twin"
    desk.path.with_name("twin.jsonl").write_bytes(desk.path.read_bytes())
    sync.with_name("twin.luker-state.chat_sync.json").write_text(json.dumps(told))
    shutil.rmtree(data / ".tellback")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.open("character:Pip/talk")
        refused = await tab.open("character:Pip/twin")
        assert (refused["code"], "character:Pip/talk" in refused["message"]) == ("unreadable", True)
        assert (await tab.append("character:Pip/talk", "two"))["type"] == "ack"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        other = await tab.open("character:Pip/twin")
        assert (other["chat_id"] != first["chat_id"], texts(other["messages"])) == (True, ["one"])
        assert (await tab.open("character:Pip/talk"))["chat_id"] == first["chat_id"]


async def test_a_state_that_rotted_is_no_edit(tmp_path: Path) -> None:
    """[X6] Nobody wrote, so its bytes are shown to nobody, the rest goes on, and a repair makes it from the log."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"seen": 1111})
    await desk.state("mood", {"calm": True})
    await desk.checkpoint()
    await desk.append("two")
    state = desk.path.with_name("talk.luker-state.memory.json")
    whole, head = state.read_bytes(), desk.stream.head
    desk.stop()
    rot(state, whole.replace(b"1111", b"2222"))
    for _turn in range(2):
        loaded = await desk.open()
        assert (loaded.adoption, loaded.stream.damage) == (None, [])
        assert loaded.stream.head.epoch == head.epoch
        memory = loaded.stream.states["memory"]
        assert (memory.corrupt, memory.data) == (True, None)
        assert loaded.stream.states["mood"].data == b'{"calm":true}'
        await desk.append("three")
        await desk.checkpoint()
        desk.stop()
        assert b"2222" in state.read_bytes()
        assert "state-rotten" in codes(data)
    repaired(data)
    assert state.read_bytes() == whole
    assert codes(data) == set()
    loaded = await desk.open()
    assert loaded.stream.states["memory"].data == whole
    desk.stop()


async def test_an_older_copy_of_a_state_is_an_edit_whatever_its_date_says(tmp_path: Path) -> None:
    """[F7] Who puts a file back keeps its date, but not its inode: the bytes of today are kept in the backups."""
    data = tmp_path / "data"
    desk = Desk(data)
    await desk.create()
    await desk.append("one")
    await desk.state("memory", {"seen": 1})
    await desk.checkpoint()
    state = desk.path.with_name("talk.luker-state.memory.json")
    older = tmp_path / "older.json"
    shutil.copy2(state, older)
    await desk.state("memory", {"seen": 2})
    await desk.checkpoint()
    desk.stop()
    state.unlink()
    shutil.copy2(older, state)
    assert "state-rotten" not in codes(data)
    loaded = await desk.open()
    assert loaded.stream.states["memory"].data == b'{"seen":1}'
    assert loaded.adoption is not None
    assert loaded.adoption.states == ["memory"]
    desk.stop()


def test_a_mark_with_half_a_surrogate_pair_is_none() -> None:
    """[X13] Nobody wrote that; it has no bytes to count."""
    version = Version(1, 1, "392e9bdd-019a-43d2-a2c2-61826911b555")
    mark = SyncMark("a", "character:A/b", version, version, Watermark(0, 0, 0), {})
    found = sync_of(json.dumps({"tellback": {**mark_fields(mark), "foo": "\ud800"}}).encode())
    assert found is not None
    assert found.mark is None
