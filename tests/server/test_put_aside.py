"""A life write finds another program's chat where ours must go: it is put aside, and its group has it (STORAGE F14)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tellback_server.operations import Move, Operation, carry_out
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.groups import GroupEdit
from tests.support.chat_desk import SilentLogger
from tests.support.injected_fs import InjectedFs, SimulatedCrash

OURS, THEIRS = b'{"chat_metadata":{}}\n{"mes":"ours"}', b'{"mes":"theirs"}'


def folder(data: Path, groups: dict[str, dict[str, Any]], home: str = "group chats") -> Operation:
    """Our chat `a`, which becomes `b`, and the other program's `b`."""
    user = data / DEFAULT_USER
    for name in (home, "groups"):
        (user / name).mkdir(parents=True)
    (user / home / "a.jsonl").write_bytes(OURS)
    (user / home / "b.jsonl").write_bytes(THEIRS)
    for name, group in groups.items():
        (user / "groups" / f"{name}.json").write_text(json.dumps(group))
    inode = (user / home / "a.jsonl").stat().st_ino
    return Operation(
        what="rename", user=DEFAULT_USER, chat_id="0e5c0f9a-1111-4222-8333-444455556666", name="group:a",
        integrity="1e5c0f9a-1111-4222-8333-444455556666", seq=2,
        moves=[Move(f"{home}/a.jsonl", f"{home}/b.jsonl", inode)],
        groups=[GroupEdit(path="groups/7.json", action="replace", chat="a", to="b")],
    )


def group(data: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((data / DEFAULT_USER / "groups" / f"{name}.json").read_bytes())
    return value


@pytest.mark.parametrize("is_same", [True, False], ids=["its-own-group", "another-group"])
def test_what_is_put_aside_keeps_its_group_through_a_kill_at_every_step(tmp_path: Path, is_same: bool) -> None:
    """[J3] [F14] Never lost, never twice; what the group keeps of the chat follows it."""
    theirs = {"chat_id": "b", "past_metadata": {"b": {"note_prompt": "t"}}}
    groups: dict[str, dict[str, Any]] = (
        {"7": {"chats": ["b", "a"], **theirs}} if is_same else {"7": {"chats": ["a"]}, "8": {"chats": ["b"], **theirs}}
    )
    aside = "b - recovered #1"
    for at in range(1, 400):
        data, fs = tmp_path / str(at), InjectedFs()
        operation = folder(data, groups)
        fs.arm(at, fs.die)
        try:
            carry_out(FileStore(fs, str(data), logger=SilentLogger()), operation)
        except SimulatedCrash:
            assert fs.is_dead
        carry_out(FileStore(InjectedFs(), str(data), logger=SilentLogger()), operation)
        where = f"at call {at}"
        home = data / DEFAULT_USER / "group chats"
        assert {path.name: path.read_bytes() for path in home.iterdir()} == {
            "b.jsonl": OURS, f"{aside}.jsonl": THEIRS,
        }, where
        other = group(data, "7" if is_same else "8")
        assert other["chats"] == ([aside, "b"] if is_same else [aside]), where
        assert (other["chat_id"], other["past_metadata"]) == (aside, {aside: {"note_prompt": "t"}}), where
        assert "b" in group(data, "7")["chats"], where
        if not fs.reached:
            return
    raise AssertionError("the operation has more calls than are tried")


def test_a_characters_chat_that_is_put_aside_is_in_no_group(tmp_path: Path) -> None:
    """[F14] Also where the character is called as the folder of groups' chats, and a group has a chat of its name."""
    operation = folder(tmp_path, {"7": {"chats": ["b"]}}, "chats/group chats")
    carry_out(FileStore(InjectedFs(), str(tmp_path), logger=SilentLogger()), operation)
    assert group(tmp_path, "7") == {"chats": ["b"]}
    assert (tmp_path / DEFAULT_USER / "chats" / "group chats" / "b - recovered #1.jsonl").read_bytes() == THEIRS
