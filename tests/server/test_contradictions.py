"""Files, log and session file that contradict each other: the load does what a check tells, a repair ends it (X13)."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version
from tellback_server.app import App
from tellback_server.loading import LoadedStream
from tellback_server.store.files import DEFAULT_USER
from tellback_server.store.marks import SyncMark, Watermark, mark_fields, sync_of
from tests.support.chat_desk import Desk
from tests.support.damage import checked, codes, repaired, rot
from tests.support.server import TabClient, new_session, running, texts


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


CHAT = "character:Pip/talk"
QUIET = {"checkpoint_interval_s": 600, "backup_interval_s": 3600}


async def held(tmp_path: Path, session: str) -> tuple[Path, str, str]:
    """A chat whose log is older than its files; a reply of `session` ended in it as g0, another one runs as g1. The
    data folder, a backup of the chat, and the version that g0 ended with.
    """
    data = tmp_path / "data"
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0], session)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        backup: str = (await tab.ask("backup-create", chat=CHAT))["backup"]["backup"]
        reply = {"name": "Pip", "is_user": False}
        await tab.write("generation-start", CHAT, generation="g0", base="*", reply=reply)
        ended = await tab.write("generation-end", CHAT, generation="g0")
        await tab.write("generation-start", CHAT, generation="g1", base="*", reply=reply)
        await tab.raw.send({"type": "generation-delta", "chat": CHAT, "generation": "g1", "offset": 0, "text": "said"})
        while (await tab.raw.receive_until(type="generation-delta", generation="g1"))["durable"] < len("said"):
            pass
    older = copied(data, tmp_path / "older")
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0], session)
        await tab.open(CHAT)
        await tab.append(CHAT, "two")
    put_back(data, older)
    return data, backup, ended["version"]["integrity"]


async def test_nothing_but_a_decision_ends_a_contradiction(tmp_path: Path) -> None:
    """[X13] Whatever is asked of such a chat is refused without using up its number, and nothing is written for it:
    the next start serves what this one served.
    """
    session = new_session()
    data, backup, acked = await held(tmp_path, session)
    whole = tree(data)
    versions: list[dict[str, Any]] = []

    async def refused(app: App, frame: dict[str, Any]) -> dict[str, Any]:
        tab = await TabClient.join(app.urls[0], session)
        opened = await tab.open(CHAT)
        assert (opened["read_only"], texts(opened["messages"])) == (True, ["one", "two"])
        versions.append(opened["version"])
        if frame["type"] in ("generation-delta", "generation-ack"):
            await tab.raw.send({"chat": CHAT, **frame})
            return await tab.raw.receive_until(type="error")
        return await tab.write(chat=CHAT, **frame)

    for frame in (
        {"type": "append", "base": "*", "messages": [{"mes": "three"}]},
        {"type": "append", "base": 7, "messages": []},
        {"type": "chat-rename", "base": "*", "to": "elsewhere"},
        {"type": "chat-rename", "base": "*", "to": "a/b"},
        {"type": "chat-delete", "base": "*", "force": True},
        {"type": "chat-restore"},
        {"type": "backup-restore", "base": "*", "backup": backup, "to": "beside"},
        {"type": "backup-restore", "base": "*", "backup": "nothing"},
        {"type": "backup-restore", "base": str(uuid.uuid4()), "backup": backup},
        {"type": "generation-cancel", "generation": "g1"},
        {"type": "generation-delta", "generation": "g1", "offset": 4, "text": " more"},
        {"type": "generation-ack", "generation": "g0", "integrity": acked},
    ):
        async with running(data, **QUIET) as app:
            answer = await refused(app, frame)
            assert (answer["code"], answer["retry"]) == ("read-only", "after-sync"), (frame, answer)
    assert tree(data) == whole
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0], session)
        opened = await tab.open(CHAT)
        assert [opened["version"]] * len(versions) == versions
        restored = await tab.write("backup-restore", CHAT, base=opened["version"]["integrity"], backup=backup)
        assert restored["type"] == "ack", restored
        again = await tab.open(CHAT)
        assert "read_only" not in again
        assert (await tab.append(CHAT, "three"))["type"] == "ack"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0], session)
        again = await tab.open(CHAT)
        # The text of g1, which nobody could end, is kept as another program's deletion keeps it (T23).
        assert ("read_only" in again, {*texts(again["messages"])} - {"said"}) == (False, {"one", "three"})


async def test_what_another_program_does_to_such_a_chat_is_shown_and_decides_nothing(tmp_path: Path) -> None:
    """[X13] Its tabs hear of it; the chat stays what it is, also for the next start."""
    data, _backup, _acked = await held(tmp_path, new_session())
    path = data / DEFAULT_USER / "chats" / "Pip" / "talk.jsonl"
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.open(CHAT)
        path.write_bytes(path.read_bytes() + b'\n{"mes":"theirs"}')
        other = await TabClient.join(app.urls[0])
        opened = await other.open(CHAT)
        assert (opened["read_only"], texts(opened["messages"])) == (True, ["one", "two", "theirs"])
        assert (opened["damage"], opened["head"]["epoch"]) == (first["damage"], first["head"]["epoch"])
        assert (await tab.raw.receive_until(type="reset"))["reason"] == "outside-edit"
        assert (await other.append(CHAT, "three"))["code"] == "read-only"
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0])
        again = await tab.open(CHAT)
        assert (again["read_only"], again["version"]) == (True, opened["version"])


@pytest.mark.parametrize("goes", ["renamed", "deleted"])
async def test_such_a_chat_goes_along_with_its_character_and_stays_what_it_is(tmp_path: Path, goes: str) -> None:
    """[X13] [J10] [J11] Open or not, it goes without a commit of its own."""
    data, _backup, _acked = await held(tmp_path, new_session())
    card = data / DEFAULT_USER / "characters" / "Pip.png"
    card.parent.mkdir(exist_ok=True)
    card.write_bytes(b"a picture")
    async with running(data, **QUIET) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        owner = {"character": "Pip"}
        if goes == "renamed":
            answer = await tab.ask("owner-rename", owner=owner, op=1, base="*", to="Pop")
        else:
            answer = await tab.ask("owner-delete", owner=owner, op=1, base="*", chats=True, force=True)
        assert answer["type"] == "ack", answer
        assert (await tab.raw.receive_until(type="reset"))["reason"] == "failed"
        old = await tab.open(CHAT)
        told = ("renamed", "character:Pop/talk") if goes == "renamed" else ("deleted", opened["chat_id"])
        assert (old["code"], old.get("to", old.get("chat_id"))) == told
        if goes == "deleted":
            assert (await tab.ask("owner-restore", owner=owner, op=2))["type"] == "ack"
        name = "character:Pop/talk" if goes == "renamed" else CHAT
        again = await tab.open(name)
        assert (again["read_only"], texts(again["messages"])) == (True, ["one", "two"])
        assert (await tab.append(name, "three"))["code"] == "read-only"


async def test_a_chat_that_rotted_stays_so_under_another_name_and_out_of_the_trash(tmp_path: Path) -> None:
    """[X6] Moving a file is not writing it: it is read-only until somebody does."""
    data = tmp_path / "data"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    path = data / DEFAULT_USER / "chats" / "Pip" / "talk.jsonl"
    whole = path.read_bytes()
    rot(path, whole.replace(b"one", b"onf"))
    moved = "character:Pip/moved"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        assert (opened["read_only"], texts(opened["messages"])) == (True, ["onf"])
        assert (await tab.write("chat-rename", CHAT, base="*", to="moved"))["type"] == "ack"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(moved)
        assert (opened["read_only"], opened["damage"][0]["line"]) == (True, 0)
        assert (await tab.write("chat-delete", moved, base=opened["version"]["integrity"]))["type"] == "ack"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        restored = await tab.ask("chat-restore", chat=f"id:{opened['chat_id']}", op=1)
        assert restored["type"] == "ack", restored
        assert (await tab.open(moved))["read_only"]
        assert (await tab.ask("chat-repair", chat=moved, apply=True))["done"]
        again = await tab.open(moved)
        assert ("read_only" in again, texts(again["messages"])) == (False, ["one"])
        assert (await tab.write("append", moved, base="*", messages=[{"mes": "two"}]))["type"] == "ack"
    assert path.with_name("moved.jsonl").read_bytes().startswith(whole.rstrip(b"\n"))


async def test_the_states_of_a_character_stay_undecided_too(tmp_path: Path) -> None:
    """[X13] [Q1] Neither a refused write nor a name or the trash decides; the character's chats go on."""
    data, owner = tmp_path / "data", {"character": "Pip"}
    card = data / DEFAULT_USER / "characters" / "Pip.png"
    card.parent.mkdir(parents=True)
    card.write_bytes(b"a picture")
    for number in (1, 2):
        async with running(data, **QUIET) as app:
            tab = await TabClient.join(app.urls[0])
            written = await tab.ask(
                "state-update", owner=owner, op=1, namespace=f"n{number}", base=None, set={"seen": number}
            )
            assert written["type"] == "ack"
        if number == 1:
            older = copied(data, tmp_path / "older")
    put_back(data, older)
    versions: list[dict[str, Any]] = []
    for frame in (
        {"type": "state-update", "namespace": "n3", "base": 7, "set": {}},
        {"type": "owner-rename", "base": "*", "to": "Pop"},
        {"type": "owner-delete", "base": "*", "force": True, "chats": True},
    ):
        async with running(data, **QUIET) as app:
            tab = await TabClient.join(app.urls[0])
            opened = await tab.ask("open", owner=owner, since=None)
            assert (opened["read_only"], sorted(opened["states"])) == (True, ["n1", "n2"])
            versions.append(opened["head"])
            assert (await tab.ask(owner=owner, op=1, **frame))["code"] == "read-only"
            await tab.open(CHAT, create=True)
            assert (await tab.append(CHAT, "on"))["type"] == "ack"
    assert versions == [versions[0]] * 3
