"""Floor states and their files: Luker's read and written, crashes at every step, other programs' edits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from msgspec import Raw

from tellback_protocol.decide import Committed, Stored
from tellback_protocol.requests import FloorTarget, FloorUpdate, Swipe
from tellback_protocol.values import dumps
from tests.support.chat_desk import Desk
from tests.support.injected_fs import InjectedFs

HEADER = '{"user_name":"unused","character_name":"unused","chat_metadata":{}}'
LINES = [
    '{"name":"Pip","mes":"zero"}',
    '{"name":"U","mes":"one"}',
    '{"name":"Pip","mes":"two","swipe_id":0,"swipes":["two","zwei"]}',
]
LOG: list[dict[str, Any]] = [
    {"floor": 0, "swipeId": 0, "patches": [{"op": "add", "path": "/a", "value": 1}]},
    {"floor": 1, "swipeId": 0, "patches": [{"op": "add", "path": "/b", "value": 1}]},
    {"floor": 2, "swipeId": 0, "patches": [{"op": "test", "path": "/b", "value": 1},
                                           {"op": "replace", "path": "/b", "value": 2}]},
    {"floor": 2, "swipeId": 1, "patches": [{"op": "add", "path": "/c", "value": 9}]},
]


def make_data(root: Path, *, log: Any = LOG, state: Any = None) -> Path:
    folder = root / "data" / "default-user" / "chats" / "Pip"
    folder.mkdir(parents=True)
    (folder / "talk.jsonl").write_text("\n".join([HEADER, *LINES]), encoding="utf-8")
    if log is not None:
        document = {"version": 1, "commits": log} if isinstance(log, list) else log
        sidecar(folder, "score__floor_log").write_text(
            document if isinstance(document, str) else json.dumps(document), encoding="utf-8"
        )
    if state is not None:
        sidecar(folder, "score").write_text(json.dumps(state), encoding="utf-8")
    return root / "data"


def sidecar(folder: Path, namespace: str) -> Path:
    return folder / f"talk.luker-state.{namespace}.json"


def files(desk: Desk) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in desk.path.parent.iterdir()}


def read_as_luker(folder: Path) -> Any:
    """What Luker makes of the files: it knows floors and swipes only."""
    lines = [json.loads(line) for line in (folder / "talk.jsonl").read_text(encoding="utf-8").split("\n")[1:] if line]
    state: Any = {}
    log = json.loads(sidecar(folder, "score__floor_log").read_text(encoding="utf-8"))
    assert log["version"] == 1
    for commit in log["commits"]:
        if commit["floor"] < len(lines) and lines[commit["floor"]].get("swipe_id", 0) == commit["swipeId"]:
            state = jsonpatch.apply_patch(copy.deepcopy(state), commit["patches"])
    return state


async def update(desk: Desk, *operations: dict[str, Any], at: FloorTarget | None = None) -> Committed | Stored:
    document = desk.stream.states.get("score")
    base = document.version.integrity if document and document.data is not None and document.version else None
    request = FloorUpdate("c", "score", Raw(dumps(operations)), id=1, op=desk.op + 1, base=base)
    if at is not None:
        request.at = at
    decision = await desk.write(request)
    assert isinstance(decision, Committed | Stored)
    return decision


async def select(desk: Desk, index: int, swipe: int) -> None:
    message = desk.stream.chat.order()[index]
    base = desk.stream.chat.version.integrity
    decision = await desk.write(Swipe("c", message, "select", swipe, id=1, op=desk.op + 1, base=base))
    assert isinstance(decision, Committed)


def state(desk: Desk, namespace: str = "score") -> Any:
    document = desk.stream.states.get(namespace)
    return None if document is None or document.data is None else json.loads(document.data)


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


async def test_a_log_of_lukers_is_read_without_writing_a_byte(tmp_path: Path) -> None:
    """[F1, G10, G11] The state is there, whether Luker kept a document of it or not, and has the same version again."""
    for number, known in enumerate((None, {"a": 1, "b": 2}, {"a": "stale"})):
        desk = Desk(make_data(tmp_path / str(number), state=known))
        await desk.open()
        before = files(desk)
        assert state(desk) == {"a": 1, "b": 2}
        version = desk.stream.states["score"].version
        await desk.checkpoint()
        await desk.restart()
        assert desk.stream.states["score"].version == version
        assert files(desk) == before
        desk.stop()


async def test_what_we_write_is_a_log_of_lukers(tmp_path: Path) -> None:
    """[G5, G7, G11] After swipes and deletions from the middle Luker reads the same state as our tabs."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    folder = desk.path.parent

    async def check() -> None:
        await desk.checkpoint()
        assert read_as_luker(folder) == state(desk)
        assert json.loads(sidecar(folder, "score").read_bytes()) == state(desk)

    await update(desk, add("/c", 3))
    await check()
    await select(desk, 2, 1)
    assert state(desk) == {"a": 1, "b": 1, "c": 9}
    await check()
    await desk.append("three")
    await update(desk, add("/d", 4))
    await check()
    await desk.delete(desk.stream.chat.order()[1])
    assert state(desk) == {"a": 1, "c": 9, "d": 4}
    await check()
    log = json.loads(sidecar(folder, "score__floor_log").read_bytes())
    assert [commit["floor"] for commit in log["commits"]] == [0, 1, 1, 1, 2]
    loaded = await desk.restart()
    assert loaded.adoption is None
    assert state(desk) == {"a": 1, "c": 9, "d": 4}
    desk.stop()


async def test_a_log_counts_messages_anew_when_others_are_deleted(tmp_path: Path) -> None:
    """[G5] The log is written again though no commit of it changed, without another version."""
    desk = Desk(make_data(tmp_path, log=[LOG[0], {**LOG[3], "swipeId": 0}]))
    await desk.open()
    version = desk.stream.states["score__floor_log"].version
    await desk.delete(desk.stream.chat.order()[1])
    await desk.checkpoint()
    log = json.loads(sidecar(desk.path.parent, "score__floor_log").read_bytes())
    assert [commit["floor"] for commit in log["commits"]] == [0, 1]
    loaded = await desk.restart()
    assert loaded.adoption is None
    assert desk.stream.states["score__floor_log"].version == version
    assert state(desk) == {"a": 1, "c": 9}
    desk.stop()


async def busy(desk: Desk) -> None:
    """Everything that can happen to a floor state, part of it in the files already."""
    await update(desk, add("/x", 1))
    await desk.checkpoint()
    await desk.append("three")
    await update(desk, add("/y", 1))
    await select(desk, 2, 1)
    await update(desk, add("/z", 1), at=FloorTarget(floor=2, swipe=0))
    await desk.delete(desk.stream.chat.order()[0])
    await desk.state("score_of_another", {"a": 1})


@pytest.mark.parametrize("known", [None, {"a": 1, "b": 2}, {"a": "stale"}], ids=["log-only", "settled", "stale"])
async def test_a_crash_at_every_step_leaves_the_same_floor_state(tmp_path: Path, known: Any) -> None:
    """[F8, G4] Log and state are folded alone, whichever of the two files was written."""
    for at in range(1, 200):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at), state=known), fs=fs)
        await desk.open()
        await busy(desk)
        before = {name: (document.version, document.data) for name, document in desk.stream.states.items()}
        head = desk.stream.head
        reached = await desk.killed_checkpoint(fs, at)
        for _again in range(2):
            desk.fs = InjectedFs()
            loaded = await desk.open()
            assert loaded.adoption is None, f"at call {at}"
            after = {name: (document.version, document.data) for name, document in desk.stream.states.items()}
            assert after == before, f"at call {at}"
            assert desk.stream.head == head
            await desk.checkpoint()
            assert read_as_luker(desk.path.parent) == state(desk)
            desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


async def test_a_restart_without_a_checkpoint_replays_the_log(tmp_path: Path) -> None:
    """[G6] What is skipped is known again too."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    await update(desk, add("/list", []), at=FloorTarget(floor=1))
    await update(desk, add("/list/-", 1))
    await desk.delete(desk.stream.chat.order()[1])
    skipped = desk.stream.states["score"].skipped
    assert [commit.swipe for commit in skipped] == [0, 0]
    expected = state(desk)
    assert expected == {"a": 1}
    await desk.restart()
    assert state(desk) == expected
    assert desk.stream.states["score"].skipped == skipped
    desk.stop()


async def test_another_programs_edit_of_the_log_is_adopted(tmp_path: Path) -> None:
    """[K3, G10] Luker appended a commit: its log is the log, the state follows, ours is kept as a backup."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    await update(desk, add("/c", 3))
    await desk.checkpoint()
    path = sidecar(desk.path.parent, "score__floor_log")
    log = json.loads(path.read_bytes())
    log["commits"].append({"floor": 2, "swipeId": 0, "patches": [add("/luker", True)]})
    path.write_text(json.dumps(log), encoding="utf-8")
    loaded = await desk.adopt()
    assert loaded.adoption is not None
    assert loaded.adoption.backups
    assert state(desk) == {"a": 1, "b": 2, "c": 3, "luker": True}
    version = desk.stream.states["score"].version
    await desk.settle()
    await desk.restart()
    assert desk.stream.states["score"].version == version
    await update(desk, add("/d", 4))
    await desk.settle()
    assert read_as_luker(desk.path.parent) == state(desk) == {"a": 1, "b": 2, "c": 3, "luker": True, "d": 4}
    desk.stop()


async def test_another_programs_state_is_put_aside_when_the_floor_state_goes_on(tmp_path: Path) -> None:
    """[G10] Nobody overwrites anybody silently, and the tabs read what the log makes."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    await update(desk, add("/c", 3))
    await desk.checkpoint()
    sidecar(desk.path.parent, "score").write_text('{"theirs":1}', encoding="utf-8")
    await desk.adopt()
    assert state(desk) == {"a": 1, "b": 2, "c": 3}
    await desk.settle()
    assert json.loads(sidecar(desk.path.parent, "score").read_bytes()) == {"theirs": 1}
    await update(desk, add("/d", 4))
    await desk.settle()
    assert json.loads(sidecar(desk.path.parent, "score").read_bytes()) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert state(desk, "score__orphans") == {"tellback": [{"theirs": 1}]}
    await desk.restart()
    assert state(desk) == {"a": 1, "b": 2, "c": 3, "d": 4}
    desk.stop()


async def test_another_program_deletes_a_message(tmp_path: Path) -> None:
    """[G5] Its commits are gone with it, and the others stay with theirs."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    for index in range(3):
        await desk.patch(desk.stream.chat.order()[index], touched=True)
    await update(desk, add("/c", 3))
    await desk.checkpoint()
    lines = desk.path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    desk.path.write_text("\n".join([*lines[:1], *lines[2:]]), encoding="utf-8")
    await desk.adopt()
    assert state(desk) == {"b": 2, "c": 3}
    await desk.settle()
    await update(desk, add("/d", 4))
    await desk.settle()
    assert read_as_luker(desk.path.parent) == state(desk) == {"b": 2, "c": 3, "d": 4}
    desk.stop()


@pytest.mark.parametrize("save", ["append", "replace"])
async def test_pending_commits_survive_an_edit_of_the_chat_and_a_restart(tmp_path: Path, save: str) -> None:
    """[F7, G4] Nothing of the floor state was in a file when another program saved, and nothing when we were killed."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    await desk.append("three")
    await desk.checkpoint()
    await update(desk, add("/c", 3))
    await select(desk, 2, 1)
    await desk.append("four")
    await update(desk, add("/d", 4))
    lines = desk.path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    edit = '{"name":"U","mes":"from outside"}'
    lines = [*lines, edit] if save == "append" else [lines[0], edit, *lines[1:]]
    desk.path.write_text("\n".join(lines), encoding="utf-8")
    await desk.adopt()
    # The commit of "three" wrote the same member as the other swipe's, behind it.
    read = {"a": 1, "b": 1, "c": 3, "d": 4}
    assert state(desk) == read
    versions = {name: document.version for name, document in desk.stream.states.items()}
    await desk.restart()
    assert state(desk) == read
    assert {name: document.version for name, document in desk.stream.states.items()} == versions
    await desk.settle()
    assert read_as_luker(desk.path.parent) == read
    await desk.restart()
    assert state(desk) == read
    desk.stop()


@pytest.mark.parametrize("broken", ["[]", '"x"', '{"commits":3}', "{broken"])
async def test_a_corrupt_log_is_an_error_and_is_kept(tmp_path: Path, broken: str) -> None:
    """[G12] Deleting messages goes on; the namespace is refused until somebody repairs the file."""
    desk = Desk(make_data(tmp_path, log=broken, state={"a": 1}))
    await desk.open()
    with pytest.raises(Exception, match="state-corrupt"):
        await update(desk, add("/c", 3))
    await desk.delete(desk.stream.chat.order()[1])
    await desk.checkpoint()
    assert sidecar(desk.path.parent, "score__floor_log").read_text(encoding="utf-8") == broken
    assert json.loads(sidecar(desk.path.parent, "score").read_bytes()) == {"a": 1}
    desk.stop()


async def test_state_delete_takes_both_files_away(tmp_path: Path) -> None:
    """[G9] And after a restart they are still gone."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    await update(desk, add("/c", 3))
    await desk.checkpoint()
    await desk.state("score", None)
    await desk.checkpoint()
    assert not list(desk.path.parent.glob("*score*"))
    await desk.restart()
    assert state(desk) is None
    assert not desk.stream.floors
    desk.stop()
