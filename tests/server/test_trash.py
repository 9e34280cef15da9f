"""The trash: moved as one thing, cut off anywhere and finished, and back again (STORAGE "Trash")."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tellback_server.fs import FileTaken, FileUnsafe, Fs
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.trash import Entry, Trash
from tests.support.chat_desk import SilentLogger
from tests.support.injected_fs import InjectedFs, SimulatedCrash
from tests.support.real_data import tree

CHAT = "chats/Pip/talk.jsonl"
STATE = "chats/Pip/talk.luker-state.memory.json"
CARD = "characters/odd.png name.png"
ENTRY = Entry(
    id="3c6a0b1e-0000-4000-8000-000000000001", name="character:Pip/talk", deleted_ms=1_700_000_000_000,
    reason="deleted", files=[CHAT, STATE, CARD, "chats/Pip/was never there.json"],
)


def folder(data: Path) -> Path:
    user = data / DEFAULT_USER
    for path, text in ((CHAT, "{}\n"), (STATE, "[1]"), (CARD, "a card")):
        (user / path).parent.mkdir(parents=True, exist_ok=True)
        (user / path).write_text(text)
    return user


def trash(data: Path, fs: Fs | None = None) -> Trash:
    return Trash(FileStore(fs or Fs(), str(data), (DEFAULT_USER,), logger=SilentLogger()))


def test_what_is_put_comes_back_as_it_was(tmp_path: Path) -> None:
    user = folder(tmp_path)
    before = tree(user / "chats") | tree(user / "characters")
    one = trash(tmp_path)

    one.put(DEFAULT_USER, ENTRY)

    assert not (user / CHAT).exists()
    assert not (user / STATE).exists()
    assert not (user / CARD).exists()
    assert (user / "trash" / f"1700000000000-{ENTRY.id}" / CHAT).read_text() == "{}\n"
    assert one.entries(DEFAULT_USER) == [ENTRY]
    assert one.find(DEFAULT_USER, ENTRY.id) == one.find_named(DEFAULT_USER, ENTRY.name) == ENTRY
    assert one.find(DEFAULT_USER, "other") is None

    one.take_out(DEFAULT_USER, ENTRY)

    assert {path: bytes_[0] for path, bytes_ in (tree(user / "chats") | tree(user / "characters")).items()} == {
        path: bytes_[0] for path, bytes_ in before.items()
    }
    assert one.entries(DEFAULT_USER) == []
    assert list((user / "trash").iterdir()) == []


def test_a_file_comes_back_under_another_name_and_never_over_another_one(tmp_path: Path) -> None:
    user = folder(tmp_path)
    one = trash(tmp_path)
    one.put(DEFAULT_USER, ENTRY)
    (user / CHAT).write_text("somebody else's\n")

    with pytest.raises(FileTaken):
        one.take_out(DEFAULT_USER, ENTRY)
    assert one.entries(DEFAULT_USER) == [ENTRY]
    one.take_out(DEFAULT_USER, ENTRY, {CHAT: "chats/Pip/talk again.jsonl"})

    assert (user / CHAT).read_text() == "somebody else's\n"
    assert (user / "chats/Pip/talk again.jsonl").read_text() == "{}\n"
    assert (user / STATE).read_text() == "[1]"


def test_a_new_file_under_an_old_name_is_not_taken_along(tmp_path: Path) -> None:
    """A deletion that is finished after a crash does not touch what was made since."""
    user = folder(tmp_path)
    one = trash(tmp_path)
    one.put(DEFAULT_USER, ENTRY)
    (user / CHAT).write_text("new\n")

    one.put(DEFAULT_USER, ENTRY)

    assert (user / CHAT).read_text() == "new\n"


def test_links_and_ways_out_are_refused(tmp_path: Path) -> None:
    """[F10]"""
    user = folder(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (user / "groups").symlink_to(tmp_path / "elsewhere")
    one = trash(tmp_path)

    for path in ("../x.json", "groups/1.json", "chats//x", "/etc/passwd"):
        with pytest.raises(FileUnsafe):
            one.put(DEFAULT_USER, Entry(id="x", name="group:x", deleted_ms=1, reason="deleted", files=[path]))


@pytest.mark.parametrize("back", [False, True], ids=["put", "take-out"])
def test_a_move_that_is_cut_off_anywhere_is_finished_by_the_next_try(tmp_path: Path, back: bool) -> None:
    """[F11] Before every call of the file system; after each cut every file stands exactly once."""
    cut = 0
    while True:
        cut += 1
        data = tmp_path / str(cut)
        user = folder(data)
        fs = InjectedFs()
        one = trash(data, fs)
        if back:
            one.put(DEFAULT_USER, ENTRY)
        fs.arm(cut, fs.die)
        with contextlib.suppress(SimulatedCrash):
            (one.take_out if back else one.put)(DEFAULT_USER, ENTRY)
        reached = fs.reached
        texts = {path.stat().st_ino: path.read_text() for path in user.rglob("*") if path.is_file()}
        assert {"{}\n", "[1]", "a card"} <= set(texts.values()), fs.calls
        fresh = trash(data)
        if not back:
            fresh.put(DEFAULT_USER, ENTRY)
            assert fresh.entries(DEFAULT_USER) == [ENTRY]
            assert not any((user / path).exists() for path in ENTRY.files)
        fresh.take_out(DEFAULT_USER, ENTRY)
        assert [(user / path).read_text() for path in ENTRY.files[:3]] == ["{}\n", "[1]", "a card"]
        assert fresh.entries(DEFAULT_USER) == []
        if not reached:
            break
    assert cut > 20
