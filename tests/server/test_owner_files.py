"""The state files of characters and presets: crashes, other programs and refusing disks at every single step."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from tellback_protocol.ids import CharacterOwner, PresetOwner, StateOwner, provisional_chat_id, sidecar_name
from tellback_server.checkpoint import CheckpointFailed, OutsideEdit
from tellback_server.loading import ChatMissing
from tellback_server.sessions import SessionFile, write_sessions
from tellback_server.store.files import DEFAULT_USER
from tests.support.chat_desk import Desk
from tests.support.injected_fs import InjectedFs
from tests.support.server import Process, TabClient

PLACES = [
    pytest.param(CharacterOwner("odd.png name"), id="character"),
    pytest.param(PresetOwner("OpenAI Settings", "Default"), id="preset"),
]
CALLS_MAX = 250


def make_data(root: Path, place: StateOwner) -> Path:
    """A user with the owner, and with one state by another program."""
    user = root / DEFAULT_USER
    for folder in ("characters", "OpenAI Settings"):
        (user / folder).mkdir(parents=True)
    (user / "characters/odd.png name.png").write_bytes(b"a card")
    (user / "OpenAI Settings/Default.json").write_text("{}")
    side(root, place, "found").write_bytes(b'{\n    "theirs": 1\n}')
    return root


def side(root: Path, place: StateOwner, namespace: str) -> Path:
    folder = "characters" if isinstance(place, CharacterOwner) else place.folder
    return root / DEFAULT_USER / folder / sidecar_name(place, namespace)


def documents(desk: Desk) -> dict[str, bytes | None]:
    return {name: document.data for name, document in desk.stream.states.items() if document.data is not None}


async def scenario(desk: Desk) -> None:
    """What is in files already, and then: one made, one changed, one taken away, another program's changed."""
    await desk.state("memory", {"a": 1})
    await desk.state("gone", [1])
    await desk.checkpoint()
    await desk.state("memory", {"a": 2})
    await desk.state("gone", None)
    await desk.state("made", "text")
    await desk.state("found", {"ours": 2})


@pytest.mark.parametrize("place", PLACES)
async def test_the_files_hold_what_was_acknowledged_and_the_id_stays(tmp_path: Path, place: StateOwner) -> None:
    """[Q3] [F2] Compact where we wrote, untouched where we did not; the id survives the log and the session file."""
    desk = Desk(make_data(tmp_path, place), place)
    loaded = await desk.open()
    assert not loaded.anchored
    assert desk.stream.chat_id == provisional_chat_id(DEFAULT_USER, str(place))
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    assert side(tmp_path, place, "memory").read_bytes() == b'{"a":1}'
    assert side(tmp_path, place, "found").read_bytes() == b'{\n    "theirs": 1\n}'
    sync = orjson.loads(side(tmp_path, place, "chat_sync").read_bytes())
    assert sync["tellback"]["chat_id"] == desk.stream.chat_id
    assert sync["tellback"]["name"] == str(place)
    head, versions = desk.stream.head, {name: d.version for name, d in desk.stream.states.items()}
    desk.stop()
    for path in (tmp_path / ".tellback").rglob("*.log"):
        path.unlink()
    (tmp_path / ".tellback/term").unlink()
    loaded = await desk.open()
    assert loaded.adoption is None
    assert (desk.stream.head, {name: d.version for name, d in desk.stream.states.items()}) == (head, versions)
    desk.stop()


@pytest.mark.parametrize("place", PLACES)
async def test_outcomes_outlive_the_log_in_the_session_file(tmp_path: Path, place: StateOwner) -> None:
    """[O2]"""
    desk = Desk(make_data(tmp_path, place), place)
    await desk.open()
    await desk.state("memory", {"a": 1})
    await desk.checkpoint()
    saved = SessionFile.take(desk.stream, desk.held, desk.clock.now_ms())
    assert saved is not None
    write_sessions(desk.files, saved)
    desk.stop()
    for path in (tmp_path / ".tellback").rglob("*.log"):
        path.unlink()
    (tmp_path / ".tellback/term").unlink()
    await desk.open()
    assert desk.stream.next_op(desk.session) == 2
    desk.stop()


@pytest.mark.parametrize("torn", [None, 0.5], ids=["kill", "torn"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_crash_at_every_step_loses_nothing_and_is_no_outside_edit(
    tmp_path: Path, place: StateOwner, torn: float | None
) -> None:
    """[F8] [G1] Before each call of a checkpoint, and inside each write."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        root = make_data(tmp_path / str(at), place)
        desk = Desk(root, place, fs=fs)
        await desk.open()
        await scenario(desk)
        expected, head = documents(desk), desk.stream.head
        reached = await desk.killed_checkpoint(fs, at, torn)
        where = f"at call {at}: {fs.calls[-3:]}"
        for _again in range(2):
            desk.fs = InjectedFs()
            loaded = await desk.open()
            assert loaded.adoption is None, where
            assert (documents(desk), desk.stream.head) == (expected, head), where
            await desk.checkpoint()
            assert desk.held.head == head, where
            desk.stop()
        desk.start()
        desk.files.clean_temporaries(DEFAULT_USER)
        desk.stop()
        standing = {path.name for path in side(root, place, "x").parent.iterdir()}
        assert not [name for name in standing if name.endswith("tellback-tmp")], where
        for namespace, data in expected.items():
            assert side(root, place, namespace).read_bytes() == data, where
        assert not side(root, place, "gone").exists(), where
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("place", PLACES)
async def test_another_program_saves_at_every_step(tmp_path: Path, place: StateOwner) -> None:
    """[F7] [F9] Theirs stays, ours becomes a backup; the other documents are not touched by it."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        root = make_data(tmp_path / str(at), place)
        desk = Desk(root, place, fs=fs)
        await desk.open()
        await scenario(desk)
        memory = side(root, place, "memory")

        def save(memory: Path = memory) -> None:
            temporary = memory.with_suffix(".their-tmp")
            temporary.write_bytes(b'{"theirs":1}')
            os.replace(temporary, memory)

        fs.arm(at, save)
        await desk.settle()
        reached = fs.reached
        fs.arm(0)
        await desk.adopt()
        await desk.settle()
        where = f"at call {at}"
        expected = b'{"theirs":1}' if reached else b'{"a":2}'
        assert memory.read_bytes() == desk.stream.states["memory"].data == expected, where
        assert documents(desk)["made"] == b'"text"', where
        assert "gone" not in documents(desk), where
        backups = [path.read_bytes() for path in root.rglob("backups/tellback/*/*.memory.json")]
        assert not reached or b'{"a":2}' in backups, where
        loaded = await desk.restart()
        assert loaded.adoption is None, where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("number", [28, 5], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_disk_that_refuses_at_every_step_loses_nothing(
    tmp_path: Path, place: StateOwner, number: int
) -> None:
    """[F6]"""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at), place), place, fs=fs)
        await desk.open()
        await scenario(desk)
        expected = documents(desk)

        def refuse() -> None:
            raise OSError(number, os.strerror(number))

        fs.arm(at, refuse)
        try:
            await desk.checkpoint()
        except (CheckpointFailed, OSError):
            assert desk.held.pending
        reached = fs.reached
        fs.arm(0)
        await desk.settle()
        loaded = await desk.restart()
        assert loaded.adoption is None, f"at call {at}, {fs.calls}"
        assert documents(desk) == expected
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("place", PLACES)
async def test_an_owner_that_another_program_deleted_leaves_backups_of_what_no_file_holds(
    tmp_path: Path, place: StateOwner
) -> None:
    """[F9] [Q7] Its pending states; the state files themselves go to the trash later."""
    desk = Desk(make_data(tmp_path, place), place)
    await desk.open()
    await scenario(desk)
    desk.path.unlink()
    with pytest.raises(OutsideEdit):
        await desk.checkpoint()
    desk.stop()
    desk.start()
    missing = desk.read()
    assert isinstance(missing, ChatMissing)
    backups = [tmp_path / DEFAULT_USER / path for path in missing.backups]
    kept = {path.name.split(".", 1)[1]: path.read_bytes() for path in backups}
    assert kept == {"memory.json": b'{"a":2}', "made.json": b'"text"', "found.json": b'{"ours":2}'}
    again = desk.read()
    assert isinstance(again, ChatMissing)
    assert again.backups == missing.backups
    desk.stop()


@pytest.mark.parametrize("place", PLACES)
async def test_a_state_changed_before_we_ever_wrote_is_another_head(tmp_path: Path, place: StateOwner) -> None:
    """[R1] A tab that comes back with the old head is not told that nothing was missed."""
    desk = Desk(make_data(tmp_path, place), place)
    await desk.open()
    before = desk.stream.head
    desk.stop()
    await desk.open()
    assert desk.stream.head == before
    side(tmp_path, place, "found").write_bytes(b"[]")
    adopted = await desk.adopt()
    assert adopted.adoption is not None
    assert desk.stream.head.integrity != before.integrity
    desk.stop()


POINTS = ["after_check", "after_intent", "before_state", "after_state", "before_sync_file", "after_sync_file"]


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_a_named_point_of_the_checkpoint(tmp_path: Path, point: str) -> None:
    """[G1] [F8] kill -9 of the real server; what was acknowledged is there after the restart, in the file too."""
    place = CharacterOwner("odd.png name")
    owner = {"character": place.character}
    data = make_data(tmp_path / "data", place)
    process = Process(
        data, "--checkpoint-interval", "0.02", environment={"TELLBACK_FAILPOINTS": f"checkpoint.{point}=kill"}
    )
    async with process:
        tab = await TabClient.join(process.url)
        opened = await tab.ask("open", owner=owner, since=None)
        made = await tab.ask("state-update", owner=owner, op=1, namespace="memory", base=None, set={"n": 1})
        assert made["type"] == "ack"
        assert await process.ended() == -9
        process.environment = {}
        await process.start()
        tab = await TabClient.join(process.url, tab.session)
        again = await tab.ask("open", owner=owner, since=opened["head"])
        assert (again["mode"], again["next_op"], again["owner_id"]) == ("replay", 2, opened["owner_id"])
        got = await tab.ask("state-get", owner=owner, namespaces=["memory"])
        assert got["states"]["memory"] == {"version": made["version"], "data": {"n": 1}}
        resent = await tab.ask("state-update", owner=owner, op=1, namespace="memory", base=None, set={"n": 1})
        assert resent["duplicate"] is True
        assert await process.stop() == 0
    assert side(data, place, "memory").read_bytes() == b'{"n":1}'
