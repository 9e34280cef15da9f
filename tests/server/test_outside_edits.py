"""Other programs save, append and crash into every step of ours (STORAGE "User files" F7, F8, F9).

Each test repeats one scenario with something happening before call 1, 2, 3, ... of the file system, until the scenario
ends before that call comes. What must hold afterwards is always the same:
- every acknowledged message is in the chat, in a recovered chat or in a backup;
- what the other program wrote is in the chat;
- without another program, nothing is reported as an outside edit.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from tellback_server.checkpoint import CheckpointFailed
from tests.support.chat_desk import Desk
from tests.support.injected_fs import InjectedFs, SimulatedCrash

HEADER = '{"user_name":"unused","character_name":"unused","chat_metadata":{}}'
OLD = [HEADER, *(f'{{"name":"Pip","is_user":false,"mes":"old {number}"}}' for number in range(3))]
EDIT = '{"name":"U","is_user":true,"mes":"from outside"}'

CALLS_MAX = 400


def make_data(root: Path, end: str = "") -> Path:
    folder = root / "data" / "default-user" / "chats" / "Pip"
    folder.mkdir(parents=True)
    (folder / "talk.jsonl").write_text("\n".join(OLD) + end, encoding="utf-8")
    return root / "data"


# -- the other programs


def replace(path: Path, text: str) -> None:
    temporary = path.with_name("other.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def silly_tavern_stale(path: Path) -> None:
    """SillyTavern saves what its tab loaded before we came: everything of ours is gone from the file."""
    replace(path, "\n".join([*OLD, EDIT]))


def silly_tavern_fresh(path: Path) -> None:
    """SillyTavern loaded the newest file, dropped what does not parse, spells every line anew, and saves."""
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            lines.append(orjson.dumps(orjson.loads(line)).decode())
        except orjson.JSONDecodeError:
            continue
    replace(path, "\n".join([*lines, EDIT]))


def luker_append(path: Path) -> None:
    """Luker Gen 1 appends behind whatever is there."""
    with path.open("ab") as file:
        file.write(b"\n" + EDIT.encode())


def luker_replace(path: Path) -> None:
    """Luker Gen 2 writes header and lines with a line end each, temporary file and rename."""
    replace(path, path.read_text(encoding="utf-8").rstrip("\n") + "\n" + EDIT + "\n")


def editor(path: Path) -> None:
    """An editor writes in place."""
    text = path.read_text(encoding="utf-8").rstrip("\n") + "\n" + EDIT + "\n"
    path.write_text(text, encoding="utf-8")


OTHERS = [silly_tavern_stale, silly_tavern_fresh, luker_append, luker_replace, editor]


# -- what we do


async def appending(desk: Desk) -> None:
    await desk.append("ours 1", "ours 2")


async def patching(desk: Desk) -> None:
    first = desk.stream.chat.order()[0]
    await desk.append("ours 1")
    await desk.patch(first, mes="patched by us")


async def with_states(desk: Desk) -> None:
    await desk.append("ours 1")
    await desk.state("memory", {"a": 1})
    await desk.metadata(tainted=True)


SCENARIOS = [appending, patching, with_states]


def everything_written(desk: Desk) -> str:
    """All texts of all chat files and backups of the user."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (desk.data / "default-user").rglob("*.jsonl"))


def assert_kept(desk: Desk) -> None:
    kept = everything_written(desk)
    for line in desk.acknowledged.values():
        text = orjson.loads(line)["mes"]
        assert text in kept, f"the acknowledged {text!r} is lost"


@pytest.mark.parametrize("end", ["", "\n"], ids=["no-end", "end"])
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_another_program_saves_at_every_step_of_a_live_checkpoint(
    tmp_path: Path, scenario: Callable[[Desk], Awaitable[None]], other: Callable[[Path], None], end: str
) -> None:
    """[F7] [F9] Nobody's work is lost, whichever call of ours the other program's save comes before."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at), end), fs=fs)
        await desk.open()
        await scenario(desk)
        path = desk.path
        fs.arm(at, lambda path=path: other(path))  # type: ignore[misc]
        await desk.settle()
        reached = fs.reached
        fs.arm(0)
        if not reached:
            # It comes after everything: noticed when somebody looks.
            other(path)
        await desk.adopt()
        await desk.settle()
        where = f"at call {at}"
        assert desk.texts().count("from outside") == 1, where
        assert desk.stream.damage == [], where
        assert_kept(desk)
        assert not list(path.parent.glob(".*tellback-tmp")), where
        texts = desk.texts()
        loaded = await desk.restart()
        assert loaded.adoption is None, where
        assert desk.texts() == texts, where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("torn", [None, 0.0, 0.5, 0.99], ids=["kill", "torn-0", "torn-half", "torn-most"])
@pytest.mark.parametrize("end", ["", "\n"], ids=["no-end", "end"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_crash_at_every_step_is_no_outside_edit(
    tmp_path: Path, scenario: Callable[[Desk], Awaitable[None]], end: str, torn: float | None
) -> None:
    """[F8] After a kill before any call or inside any write, loading finds our own work and the next one ends it."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at), end), fs=fs)
        await desk.open()
        await scenario(desk)
        texts, head, metadata = desk.texts(), desk.stream.head, desk.stream.chat.metadata
        states = {name: document.data for name, document in desk.stream.states.items()}
        reached = await desk.killed_checkpoint(fs, at, torn)
        for _again in range(2):
            desk.fs = InjectedFs()
            loaded = await desk.open()
            where = f"at call {at}"
            assert loaded.adoption is None, where
            assert desk.texts() == texts, where
            assert desk.stream.head == head, where
            assert orjson.loads(desk.stream.chat.metadata) == orjson.loads(metadata), where
            assert {name: document.data for name, document in desk.stream.states.items()} == states, where
            await desk.checkpoint()
            assert desk.texts() == texts, where
            desk.stop()
        desk.start()
        desk.files.clean_temporaries("default-user")
        desk.stop()
        assert not list(desk.path.parent.glob(".*tellback-tmp")), where
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("torn", [None, 0.5], ids=["kill", "torn"])
async def test_another_program_saves_after_a_crash_at_every_step(
    tmp_path: Path, scenario: Callable[[Desk], Awaitable[None]], other: Callable[[Path], None], torn: float | None
) -> None:
    """[F7] [F8] [F9] Killed at any call, then edited by somebody, then started again: nothing is lost."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at)), fs=fs)
        await desk.open()
        await scenario(desk)
        path = desk.path
        reached = await desk.killed_checkpoint(fs, at, torn)
        other(path)
        desk.fs = InjectedFs()
        loaded = await desk.open()
        where = f"at call {at}"
        assert loaded.adoption is not None, where
        adopted = desk.texts()
        loaded = await desk.restart()
        assert loaded.adoption is None, "the adoption is durable before the files are written"
        assert desk.texts() == adopted, where
        await desk.settle()
        assert desk.texts().count("from outside") == 1, where
        assert desk.stream.damage == [], where
        assert_kept(desk)
        texts = desk.texts()
        loaded = await desk.restart()
        assert loaded.adoption is None, where
        assert desk.texts() == texts, where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("other", [silly_tavern_stale, luker_append], ids=lambda other: other.__name__)
async def test_a_crash_in_every_step_of_the_adoption_itself(
    tmp_path: Path, scenario: Callable[[Desk], Awaitable[None]], other: Callable[[Path], None]
) -> None:
    """[F7] [F9] Adopting can be interrupted anywhere and makes no second copy when it is done again."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at)), fs=fs)
        await desk.open()
        await scenario(desk)
        other(desk.path)
        fs.arm(at, fs.die)
        try:
            await desk.adopt()
            await desk.settle()
        except SimulatedCrash:
            assert fs.is_dead
        reached = fs.reached
        desk.stop()
        desk.fs = InjectedFs()
        await desk.open()
        await desk.settle()
        where = f"at call {at}"
        assert desk.texts().count("from outside") == 1, where
        assert_kept(desk)
        assert len(list(desk.path.parent.glob("*recovered*.jsonl"))) <= 1, where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


@pytest.mark.parametrize("number", [28, 30, 5, 13], ids=["ENOSPC", "EROFS", "EIO", "EACCES"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_disk_that_refuses_at_every_step_loses_nothing(
    tmp_path: Path, scenario: Callable[[Desk], Awaitable[None]], number: int
) -> None:
    """[F6] A failed checkpoint says so; the next one writes everything, and nothing is taken for an outside edit."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at)), fs=fs)
        await desk.open()
        await scenario(desk)
        texts = desk.texts()

        def refuse() -> None:
            raise OSError(number, os.strerror(number))

        fs.arm(at, refuse)
        try:
            await desk.checkpoint()
            failed = False
        except (CheckpointFailed, OSError):
            failed = True
        reached = fs.reached
        fs.arm(0)
        where = f"at call {at}, {fs.calls}"
        if failed:
            assert desk.held.pending, where
        await desk.settle()
        assert desk.held.head.epoch == 1, where
        loaded = await desk.restart()
        assert loaded.adoption is None, where
        assert desk.texts() == texts, where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the scenario has more calls than are tried")


class KilledAfterTheSwap(InjectedFs):
    """Another program saves just before our swap, and we are killed just after it: its save stands at the swap name."""

    def __init__(self, path: Path, other: Callable[[Path], None], *, edited_again: bool) -> None:
        super().__init__()
        self._path = path
        self._other = other
        self._edited_again = edited_again

    def exchange(self, first: str, second: str) -> bool:
        self._other(self._path)
        super().exchange(first, second)
        if self._edited_again:
            replace(self._path, "\n".join([*OLD, EDIT.replace("from outside", "saved again")]))
        self.die()
        return True


@pytest.mark.parametrize("edited_again", [False, True])
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
async def test_a_save_that_we_swapped_out_and_could_not_look_at(
    tmp_path: Path, other: Callable[[Path], None], edited_again: bool
) -> None:
    """[F7] [F9] The restart gives it its name back; when a third save took the name, it is kept as a backup."""
    desk = Desk(make_data(tmp_path))
    await desk.open()
    desk.stop()
    fs = KilledAfterTheSwap(desk.path, other, edited_again=edited_again)
    desk.fs = fs
    await desk.open()
    await patching(desk)
    with pytest.raises(SimulatedCrash):
        await desk.checkpoint()
    desk.stop()
    desk.fs = InjectedFs()

    loaded = await desk.open()
    await desk.settle()

    assert loaded.adoption is not None
    assert desk.texts().count("saved again" if edited_again else "from outside") == 1
    assert "from outside" in everything_written(desk)
    assert_kept(desk)
    assert not list(desk.path.parent.glob(".*tellback-tmp"))
    desk.stop()


@pytest.mark.parametrize("value", [{"ours": 1}, None], ids=["update", "delete"])
async def test_a_sidecar_is_saved_by_somebody_at_every_step(tmp_path: Path, value: object) -> None:
    """[F7] [F9] Theirs stays in the sidecar, ours becomes a backup."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = Desk(make_data(tmp_path / str(at)), fs=fs)
        await desk.open()
        await desk.state("memory", {"old": 1})
        await desk.checkpoint()
        await desk.append("ours 1")
        await desk.state("memory", value)
        sidecar = desk.path.with_name("talk.luker-state.memory.json")
        fs.arm(at, lambda sidecar=sidecar: replace(sidecar, '{"theirs":1}'))  # type: ignore[misc]
        await desk.settle()
        reached = fs.reached
        fs.arm(0)
        await desk.adopt()
        await desk.settle()
        where = f"at call {at}"
        standing = sidecar.read_bytes() if sidecar.exists() else None
        assert desk.stream.states["memory"].data == standing, where
        assert desk.texts()[-1] == "ours 1", where
        backups = [path.read_bytes() for path in desk.data.rglob("backups/tellback/*/*.memory.json")]
        if reached:
            assert standing == b'{"theirs":1}', f"{where}: {fs.calls}"
            assert value is None or orjson.dumps(value) in backups, where
        loaded = await desk.restart()
        assert loaded.adoption is None, where
        desk.stop()
        if not reached:
            assert standing == (None if value is None else orjson.dumps(value))
            return
    raise AssertionError("the scenario has more calls than are tried")
