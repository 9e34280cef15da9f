"""SillyTavern, Luker and editors change files under the running server, or while it is down or was killed.

What always holds: tabs are told `reset`; nothing acknowledged is lost (it is in the chat, in a `recovered` chat or in a
backup); nothing of the other program is lost; and a restart alone is never taken for an edit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, sillytavern_copy, texts, tree
from tests.support.waiting import until

CHAT = "character:Pip/Pip - 2024-11-01@12h00m00s"
FILE = "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"
OUTSIDE = "written by another program"
NEVER_S, AT_ONCE_S = 600, 0.02


def sillytavern_saves(path: Path, stale: bytes) -> None:
    """SillyTavern writes the whole chat as its own tab knows it, by a temporary file and a rename."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(stale.rstrip(b"\n") + b"\n" + line_outside())
    os.replace(temporary, path)


def luker_appends(path: Path, _stale: bytes) -> None:
    """Luker appends behind what is there."""
    with path.open("ab") as file:
        file.write(b"\n" + line_outside())


def editor_saves(path: Path, _stale: bytes) -> None:
    """An editor reads what is there now and writes it in place."""
    now = path.read_bytes()
    path.write_bytes(now.rstrip(b"\n") + b"\n" + line_outside() + b"\n")


def line_outside() -> bytes:
    return json.dumps({"name": "Pip", "is_user": False, "mes": OUTSIDE}).encode()


PROGRAMS = [sillytavern_saves, luker_appends, editor_saves]


def kept(data: Path) -> str:
    """The texts of all chats and backups of the user, recovered ones too."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (data / "default-user").rglob("*.jsonl"))


async def assert_whole(server: ForkedServer, data: Path, acked: list[str], old: list[str]) -> None:
    """Fold everything by a stop; then look at the files and at what a newcomer is served."""
    assert await server.stop() == 0
    everything = kept(data)
    for text in acked:
        assert text in everything, f"{text!r} was acknowledged and is nowhere"
    chat = [json.loads(line)["mes"] for line in (data / FILE).read_bytes().split(b"\n")[1:] if line.strip()]
    assert chat.count(OUTSIDE) == 1, "what the other program wrote is in the chat, once"
    assert len(chat) == len(set(chat)) or len(old) != len(set(old)), "nothing twice"
    log = server.errors.read_text()
    assert "Traceback" not in log
    edits = log.count("outside-edit-adopted")
    await server.start()
    tab = await TabClient.join(server.url)
    opened = await tab.open(CHAT)
    assert texts(opened["messages"]) == chat
    assert (await tab.append(CHAT, "life goes on"))["type"] == "ack"
    assert server.errors.read_text().count("outside-edit-adopted") == edits, "a restart is no edit"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("pending", [False, True], ids=["folded", "pending"])
async def test_an_edit_while_a_tab_has_the_chat_open(
    tmp_path: Path, program: Callable[[Path, bytes], None], pending: bool
) -> None:
    """[V4] [R3] [K3]: the tab that has it open gets `reset`, opens again, and finds both in the new epoch."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    stale = path.read_bytes()
    async with ForkedServer(data, checkpoint_interval_s=NEVER_S if pending else AT_ONCE_S) as server:
        tab = await TabClient.join(server.url)
        opened = await tab.open(CHAT)
        acked = ["ours 1", "ours 2"]
        for text in acked:
            last = await tab.append(CHAT, text)
        if not pending:
            await until(lambda: b"ours 2" in path.read_bytes())
            await until(lambda: last["version"]["integrity"] in sync_of(path))
        program(path, stale)
        other = await TabClient.join(server.url)
        seen = await other.open(CHAT, since=last["version"])
        reset = await tab.raw.receive_until(type="reset")
        assert (reset["chat"], reset["reason"]) == (CHAT, "outside-edit")
        # [K3]: everything acknowledged is in the chat, or the tab is told that the rest is kept.
        gone = set(acked) - set(texts(seen["messages"]))
        assert reset.get("kept", False) is bool(gone)
        assert "recovered" not in reset
        assert reset["version"]["epoch"] == 2
        assert (seen["mode"], seen["reset"], seen["head"]["epoch"]) == ("snapshot", "epoch", 2)
        assert OUTSIDE in texts(seen["messages"])
        # [O2]: an op of before the edit still has its outcome, and the numbers go on.
        again = await tab.ask("append", chat=CHAT, op=2, base="*", messages=[
            {"name": "User", "is_user": True, "mes": "ours 2"}])
        assert (again["version"], again["duplicate"]) == (last["version"], True)
        stale_base = await tab.ask("metadata-update", chat=CHAT, op=3, base=last["version"]["integrity"], set={})
        assert stale_base["type"] == "conflict", "what was made against the old history"
        tab.ops[CHAT] = 3
        assert (await tab.open(CHAT))["next_op"] == 4
        acked.append("ours after it")
        assert (await tab.append(CHAT, acked[-1]))["version"]["epoch"] == 2
        assert (await other.raw.receive_until(type="integrity"))["by"]["op"] == 4
        await assert_whole(server, data, acked, texts(opened["messages"]))


def sync_of(path: Path) -> str:
    sync = path.with_name(path.stem + ".luker-state.chat_sync.json")
    return sync.read_text() if sync.exists() else ""


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("end", ["stopped", "killed-pending", "killed-folded"])
async def test_an_edit_while_the_server_is_down(
    tmp_path: Path, program: Callable[[Path, bytes], None], end: str
) -> None:
    """[V4] [R3]: after a clean stop, and after a kill before or behind a checkpoint."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    stale = path.read_bytes()
    async with ForkedServer(data, checkpoint_interval_s=NEVER_S if end == "killed-pending" else AT_ONCE_S) as server:
        tab = await TabClient.join(server.url)
        opened = await tab.open(CHAT)
        acked = ["ours 1", "ours 2"]
        for text in acked:
            last = await tab.append(CHAT, text)
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"a": 1})
        if end == "stopped":
            await tab.close()
            assert await server.stop() == 0
        else:
            if end == "killed-folded":
                await until(lambda: b"ours 2" in path.read_bytes())
            await server.kill()
        program(path, stale)
        await server.start()
        tab = await TabClient.join(server.url)
        seen = await tab.open(CHAT, since=last["version"])
        assert (seen["mode"], seen["head"]["epoch"]) == ("snapshot", 2)
        assert seen["reset"] == "epoch"
        assert OUTSIDE in texts(seen["messages"])
        states = await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["memory"])
        assert states["states"]["memory"]["data"] == {"a": 1}
        await assert_whole(server, data, acked, texts(opened["messages"]))


async def test_a_restart_alone_is_never_an_edit_and_writes_nothing(tmp_path: Path) -> None:
    """[K5] STORAGE F8: stopped, killed before, during and after checkpoints; the epoch stays 1 for good."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    async with ForkedServer(data, checkpoint_interval_s=AT_ONCE_S) as server:
        count = 0
        for turn in range(12):
            tab = await TabClient.join(server.url)
            opened = await tab.open(CHAT)
            assert opened["head"]["epoch"] == 1
            for _ in range(3):
                count += 1
                await tab.append(CHAT, f"ours {count}")
                if count % 4 == 0:
                    first = opened["messages"][turn % 3]["id"]
                    patch = [{"op": "add", "path": "/extra_note", "value": count}]
                    assert (await tab.write("patch", CHAT, base={"op": tab.ops[CHAT]}, message=first, patch=patch))[
                        "type"] == "ack"
            await tab.close()
            if turn % 3 == 0:
                assert await server.stop() == 0
            else:
                await server.kill()
            await server.start()
        assert await server.stop() == 0
        log = server.errors.read_text()
        assert "outside-edit" not in log
        assert "Traceback" not in log
    after = tree(data)
    assert {path for path in after if "recovered" in path or "backups/tellback" in path} == set()
    assert {path: seen for path, seen in after.items() if path in before and path != FILE} == {
        path: seen for path, seen in before.items() if path != FILE
    }
    said = [json.loads(line)["mes"] for line in (data / FILE).read_bytes().split(b"\n")[1:] if line]
    assert said[-count:] == [f"ours {number}" for number in range(1, count + 1)]


async def test_metadata_go_on_top_of_the_mark_that_sillytavern_makes(tmp_path: Path) -> None:
    """[K3] STORAGE F7: its first save of a chat without `integrity` makes one, and writes the whole file."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    async with ForkedServer(data, checkpoint_interval_s=NEVER_S) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        assert (await tab.write("metadata-update", CHAT, base="*", merge={"ours": 1}))["type"] == "ack"
        header, *lines = path.read_bytes().split(b"\n")
        mark = {"integrity": "39edbc3e-69fd-4020-a17d-69282e45d450"}
        marked = json.dumps({**json.loads(header), "chat_metadata": mark}).encode()
        sillytavern_saves(path, b"\n".join([marked, *lines]))
        seen = await (await TabClient.join(server.url)).open(CHAT)
        assert seen["metadata"] == {**mark, "ours": 1}
        assert "recovered" not in await tab.raw.receive_until(type="reset")


async def test_a_patch_that_no_longer_fits_goes_whole_to_a_recovered_chat(tmp_path: Path) -> None:
    """[V4], DESIGN 6: the outside program changed the very message; our version is a chat of its own."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    async with ForkedServer(data, checkpoint_interval_s=NEVER_S) as server:
        tab = await TabClient.join(server.url)
        opened = await tab.open(CHAT)
        message = opened["messages"][2]
        patch = [{"op": "replace", "path": "/mes", "value": "our wording"}]
        assert (await tab.write("patch", CHAT, base=opened["version"]["integrity"], message=message["id"],
                                patch=patch))["type"] == "ack"
        await tab.append(CHAT, "ours behind it")
        lines = path.read_bytes().split(b"\n")
        lines[3] = json.dumps({**json.loads(lines[3]), "mes": "their wording"}, ensure_ascii=False).encode()
        path.write_bytes(b"\n".join(lines))
        other = await TabClient.join(server.url)
        seen = await other.open(CHAT)
        assert seen["messages"][2]["mes"] == "their wording"
        reset = await tab.raw.receive_until(type="reset")
        assert reset["reason"] == "outside-edit"
        [recovered] = [file for file in path.parent.iterdir() if "recovered" in file.name and file.suffix == ".jsonl"]
        assert reset["recovered"] == [f"character:Pip/{recovered.stem}"]
        ours = await other.open(reset["recovered"][0])
        assert ours["messages"][2]["mes"] == "our wording"
        assert texts(ours["messages"])[-1] == "ours behind it"


async def test_R28_a_chat_deleted_by_another_program_is_told_and_not_made_again(tmp_path: Path) -> None:
    """[K3]: a tab that has it open gets `reset`; to open it is `not-found`, and no checkpoint brings it back."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    async with ForkedServer(data, checkpoint_interval_s=AT_ONCE_S) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        await tab.append(CHAT, "ours")
        await until(lambda: b"ours" in path.read_bytes())
        await until(lambda: sync_of(path) != "")
        path.unlink()
        other = await TabClient.join(server.url)
        gone = await other.open(CHAT)
        assert (gone["type"], gone["code"]) == ("error", "not-found")
        reset: dict[str, Any] = await tab.raw.receive_until(type="reset")
        assert reset["reason"] == "failed"
        refused = await tab.append(CHAT, "into nothing")
        assert (refused["type"], refused["code"]) == ("error", "not-found")
        assert await server.stop() == 0
        assert not path.exists()


async def test_f5_what_is_done_to_an_old_message_with_a_cut_emoji_outlives_a_kill_and_a_stop(tmp_path: Path) -> None:
    """Half a surrogate pair goes into commits as it is served: log, session file and answers stay readable."""
    data = sillytavern_copy(tmp_path)
    path = data / FILE
    message = {"id": "cut", "name": "Pip", "mes": "a", "swipe_id": 0, "swipes": ["a", "\ud83dx", "b\ud83d"]}
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n" + json.dumps(message).encode() + b"\n")
    edits: list[tuple[str, dict[str, Any]]] = [
        ("patch", {"message": "cut", "patch": [{"op": "replace", "path": "/swipes/2", "value": "whole"}]}),
        ("swipe", {"message": "cut", "action": "select", "swipe": 1}),
        ("patch", {"message": "cut", "patch": [{"op": "copy", "from": "/mes", "path": "/extra"}]}),
        ("delete", {"messages": ["cut"]}),
    ]
    async with ForkedServer(data, checkpoint_interval_s=NEVER_S, checkpoint_debounce_s=NEVER_S) as server:
        session, acks = "", list[dict[str, Any]]()
        for op, (kind, edit) in enumerate(edits, 1):
            tab = await TabClient.join(server.url, session or None)
            session = tab.session
            opened = await tab.open(CHAT)
            assert (opened["type"], opened["next_op"]) == ("opened", op), opened
            if op < len(edits):
                assert opened["messages"][-1]["swipes"][1] == "\ufffdx"
            edit["base"] = opened["version"]["integrity"]
            acks.append(await tab.ask(kind, chat=CHAT, op=op, **edit))
            assert acks[-1]["type"] == "ack", str(acks[-1])
            if op % 2:
                await server.kill()
            else:
                assert await server.stop() == 0
            await server.start()
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT)
        for op, (kind, edit) in enumerate(edits, 1):
            again = await tab.ask(kind, chat=CHAT, op=op, **edit)
            assert (again["version"], again["duplicate"]) == (acks[op - 1]["version"], True)
