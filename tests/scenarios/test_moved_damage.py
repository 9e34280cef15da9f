"""What a move to a store takes for no sound chat: what rotted, what contradicts the log, what was edited since."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.test_moving import CHAT, killed, moved, run
from tests.server.test_contradictions import copied, put_back
from tests.support.damage import rot
from tests.support.importing import contents, write_files
from tests.support.server import TabClient, running, texts
from tests.support.stored import sqlite_url

OWNER = {"character": "アリス"}
FILE = "chats/アリス/written here.jsonl"
STATE = FILE.replace(".jsonl", ".luker-state.memory.json")


async def written(data: Path) -> None:
    write_files(data / "default-user", {"characters/アリス.png": b"card"})
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"seen": "one"})


async def deleted(data: Path, *, with_character: bool) -> Path:
    """The entry's folder in the trash."""
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        if with_character:
            await tab.ask("open", owner=OWNER, since=None)
            answer = await tab.ask("owner-delete", owner=OWNER, op=1, base="*", chats=True, force=True)
        else:
            base = (await tab.open(CHAT))["version"]["integrity"]
            answer = await tab.write("chat-delete", CHAT, base=base)
        assert answer["type"] == "ack", answer
    [entry] = (data / "default-user/trash").iterdir()
    return entry


@pytest.mark.parametrize("with_character", [False, True])
@pytest.mark.parametrize("what", ["rotten before", "rotten there", "a state", "edited there"])
async def test_what_rotted_or_was_edited_in_the_trash_is_no_sound_chat_sv12(
    what: str, with_character: bool, tmp_path: Path,
) -> None:
    """[SV12] [X6]: nothing is changed; put back, it is what it is in files. A chat that went with its character and was
    edited comes in as an edit does.
    """
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    user = data / "default-user"
    await written(data)
    if what == "rotten before":
        rot(user / FILE, (user / FILE).read_bytes().replace(b"one", b"onf"))
    entry = await deleted(data, with_character=with_character)
    if what == "edited there":
        (entry / FILE).write_bytes((entry / FILE).read_bytes() + b'\n{"mes":"theirs"}')
    elif what != "rotten before":
        path = entry / (STATE if what == "a state" else FILE)
        rot(path, path.read_bytes().replace(b"one", b"onf"))
    if (what, with_character) == ("edited there", True):
        await moved(data, url)
        async with running(data, store=url) as app:
            tab = await TabClient.join(app.urls[0])
            answer = await tab.ask("owner-restore", owner=OWNER, op=1)
            assert answer["type"] == "ack", answer
            opened = await tab.open(CHAT)
            assert (opened["version"]["epoch"], texts(opened["messages"])) == (2, ["one", "theirs"])
            assert (await tab.append(CHAT, "on"))["type"] == "ack"
        return
    was = contents(data)
    code, _out, errors = await run("move", "--data", data, "--to", url)
    assert (code, f"{CHAT} is damaged in the trash" in errors, "trash restore" in errors) == (1, True, True), errors
    assert contents(data) == was


async def test_what_contradicts_the_log_in_the_trash_is_no_sound_chat_sv12(tmp_path: Path) -> None:
    """[SV12] [X13]: a move decides nothing."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    await written(data)
    older = copied(data, tmp_path / "older")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        await tab.append(CHAT, "two")
    put_back(data, older)
    await deleted(data, with_character=True)
    was = contents(data)
    code, _out, errors = await run("move", "--data", data, "--to", url)
    assert (code, f"{CHAT} is damaged in the trash" in errors) == (1, True), errors
    assert contents(data) == was


LONG = f"character:アリス/{'x' * 240}"
"""No chat_sync can have its name."""


@pytest.mark.parametrize("what", ["a line", "a state", "a line of one without chat_sync"])
async def test_an_edit_between_two_runs_is_in_the_store_sv12(what: str, tmp_path: Path) -> None:
    """[SV12] [F7]: cut off when the log named the store, then another program wrote to a file, and the move goes on."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    path, chat = data / "default-user" / FILE, CHAT
    await written(data)
    if "without" in what:
        path, chat = path.with_name(f"{'x' * 240}.jsonl"), LONG
        path.write_bytes(b'{"chat_metadata":{}}\n{"mes":"zero"}\n')
        async with running(data) as app:
            tab = await TabClient.join(app.urls[0])
            await tab.open(chat)
            assert (await tab.append(chat, "one"))["type"] == "ack"
    await killed(data, url, "moving.after_records=kill@1")
    if what == "a state":
        (data / "default-user" / STATE).write_bytes(b'{"theirs":1}')
    else:
        path.write_bytes(path.read_bytes().rstrip(b"\n") + b'\n{"mes":"theirs"}\n')
    await moved(data, url)
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(chat)
        assert opened["head"]["epoch"] == 2
        if what == "a state":
            states = (await tab.ask("state-get", owner={"chat": chat}))["states"]
            assert states["memory"]["data"] == {"theirs": 1}
        else:
            assert texts(opened["messages"])[-2:] == ["one", "theirs"]
        assert (await tab.append(chat, "on"))["type"] == "ack"
    assert not list(path.parent.glob("*.jsonl"))
