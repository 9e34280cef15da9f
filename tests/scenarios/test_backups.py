"""Backups through a real server: before a loss, on a schedule, on demand; restored byte for byte."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tellback_server.fs import File, Fs
from tests.support.server import TabClient, running, texts
from tests.support.stored import sqlite_url
from tests.support.waiting import until

CHAT = "character:アリス/はじめまして"
FOLDER = "default-user/chats/アリス"
QUIET = {"backup_interval_s": 0}
"""Nothing is backed up by itself but before a loss."""


def files_of(data: Path, chat: str = "はじめまして") -> dict[str, bytes]:
    """Nothing of a server on a store."""
    return {
        path.name.removeprefix(chat): path.read_bytes() for path in sorted((data / FOLDER).glob("*"))
        if path.name.startswith(chat + ".") and "chat_sync" not in path.name
    }


def backups_of(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Manifests by chat_id, the oldest first."""
    root = data / "default-user/backups/tellback"
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(root.glob("*/*.json")) if root.exists() else []:
        if path.name.count(".") == 1:
            found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    for manifests in found.values():
        manifests.sort(key=lambda one: one["taken_ms"])
    return found


async def begun(url: str, *said: str, chat: str = CHAT) -> TabClient:
    tab = await TabClient.join(url)
    await tab.open(chat, create=True)
    for text in said:
        assert (await tab.append(chat, text))["type"] == "ack"
    return tab


async def folded(app: Any) -> None:
    await until(lambda: app._keeper.lag_s() == 0 and not any(actor.folding for actor in app._hub.actors))


async def test_a_forced_write_keeps_what_its_author_had_not_seen_z2(tmp_path: Path) -> None:
    """[Z2]: the version right before it, also what no file held yet; a force that overwrites nothing takes none."""
    async with running(tmp_path, **QUIET, checkpoint_interval_s=600) as app:
        tab = await begun(app.urls[0], "one", "two")
        opened = await tab.open(CHAT)
        first = opened["messages"][0]["id"]
        seen = opened["version"]["integrity"]
        replace = [{"op": "replace", "path": "/mes", "value": "forced"}]
        assert (await tab.write("patch", CHAT, base=seen, message=first, patch=replace, force=True))["type"] == "ack"
        assert backups_of(tmp_path) == {}

        answer = await tab.write("patch", CHAT, base=seen, message=first, force=True, patch=[
            {"op": "replace", "path": "/mes", "value": "over it"}
        ])

        assert answer["type"] == "ack"
        [[manifest]] = backups_of(tmp_path).values()
        assert (manifest["reason"], manifest["head"]["seq"]) == ("force", answer["version"]["seq"] - 1)
        got = await tab.ask("backup-get", chat=CHAT, backup="last")
        assert texts(got["messages"]) == ["forced", "two"]
        assert texts((await tab.open(CHAT))["messages"]) == ["over it", "two"]


async def test_a_mass_deletion_is_backed_up_first_and_a_small_one_is_not_z2(tmp_path: Path) -> None:
    """[Z2]: the others hear of the deletion only, and nothing that came behind it is lost."""
    async with running(tmp_path, **QUIET, backup_deletions_min=3) as app:
        tab = await begun(app.urls[0], *(f"{number}" for number in range(6)))
        opened = await tab.open(CHAT)
        ids = [message["id"] for message in opened["messages"]]
        await tab.write("delete", CHAT, base=opened["version"]["integrity"], messages=ids[:2])
        assert backups_of(tmp_path) == {}
        version = (await tab.open(CHAT))["version"]["integrity"]
        op = tab.ops[CHAT]
        await tab.raw.send({"type": "delete", "id": 901, "chat": CHAT, "op": op + 1, "base": version,
                            "messages": ids[2:5]})
        await tab.raw.send({"type": "append", "id": 902, "chat": CHAT, "op": op + 2, "base": "*",
                            "messages": [{"mes": "behind it"}]})
        assert (await tab.raw.receive_until(id=901))["type"] == "ack"
        assert (await tab.raw.receive_until(id=902))["type"] == "ack"

        got = await tab.ask("backup-get", chat=CHAT)
        assert got["backup"]["reason"] == "deletion"
        assert texts(got["messages"]) == ["2", "3", "4", "5"]
        assert texts((await tab.open(CHAT))["messages"]) == ["5", "behind it"]


async def test_what_changed_is_backed_up_by_itself_and_what_did_not_is_not_z3(tmp_path: Path) -> None:
    """[Z3]: two chats within a second both are; one that was only read is not."""
    async with running(tmp_path, backup_interval_s=0.3) as app:
        tab = await begun(app.urls[0], "one")
        other = "character:アリス/はじめまして 2"
        await tab.open(other, create=True)
        await tab.append(other, "uno")
        await until(lambda: len(backups_of(tmp_path)) == 2)
        await folded(app)
        counts = {chat_id: len(found) for chat_id, found in backups_of(tmp_path).items()}
        await tab.append(CHAT, "two")
        chat_id = (await tab.open(CHAT))["chat_id"]
        await until(lambda: len(backups_of(tmp_path)[chat_id]) == counts[chat_id] + 1)
        await asyncio.sleep(1.2)
        counts[chat_id] += 1
        assert {one: len(found) for one, found in backups_of(tmp_path).items()} == counts
        assert {one["reason"] for found in backups_of(tmp_path).values() for one in found} == {"schedule"}
        assert app.counters.backups == {"schedule": sum(counts.values())}


async def test_a_chat_that_leaves_memory_leaves_its_last_change_in_a_backup_z3(tmp_path: Path) -> None:
    """[Z3]: also when the last backup is young; opened and left again it needs none."""
    async with running(tmp_path, backup_interval_s=600, idle_s=0.1) as app:
        tab = await begun(app.urls[0], "one")
        for turn in range(2):
            await tab.ask("close", chat=CHAT)
            await until(lambda: app._hub.actors == [])
            [[*found]] = backups_of(tmp_path).values()
            assert [(one["reason"], one["head"]["seq"]) for one in found] == [("idle", 2)], turn
            await tab.open(CHAT)


async def test_on_demand_it_holds_everything_acknowledged_and_nobody_waits_z1_z11(tmp_path: Path) -> None:
    """[Z1] [Z11]: while another tab goes on writing; asked again without a change it is the same one."""
    async with running(tmp_path, **QUIET, checkpoint_interval_s=600, checkpoint_debounce_s=600) as app:
        tab = await begun(app.urls[0], "one")
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"n": 1})
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT)
        stop = asyncio.Event()
        acked = 0

        async def write() -> None:
            nonlocal acked
            while not stop.is_set():
                acked = (await writer.append(CHAT, "more"))["version"]["seq"]

        task = asyncio.create_task(write())
        for _turn in range(5):
            before = acked
            created = await tab.ask("backup-create", chat=CHAT)
            assert created["type"] == "backup-created", created
            assert created["is_new"]
            assert backups_of(tmp_path)[created["chat_id"]][-1]["head"]["seq"] >= before
        stop.set()
        await task
        last = await tab.ask("backup-create", chat=CHAT)
        again = await tab.ask("backup-create", chat=f"id:{last['chat_id']}")
        assert (again["is_new"], again["backup"]) == (False, last["backup"])
        listed = await tab.ask("backup-list", chat=CHAT)
        assert listed["backups"][0] == last["backup"]
        assert listed["backups"][0]["namespaces"] == ["memory"]
        every = await tab.ask("backup-list")
        assert [(one["chat_id"], one["last"]) for one in every["chats"]] == [(last["chat_id"], last["backup"])]


async def restored_setup(app: Any, data: Path) -> tuple[TabClient, TabClient, str, dict[str, bytes], dict[str, Any]]:
    """A chat with states and a floor log, backed up, then changed in every way; two tabs have it open."""
    tab = await begun(app.urls[0], "one", "two")
    await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"n": 1})
    await tab.write("floor-update", CHAT, namespace="score", base=None, patch=[
        {"op": "add", "path": "/points", "value": 1}
    ])
    await tab.write("metadata-update", CHAT, base="*", merge={"note": "before"})
    created = await tab.ask("backup-create", chat=CHAT)
    assert created["type"] == "backup-created", created
    before = files_of(data)
    was = await tab.open(CHAT)
    await tab.append(CHAT, "three")
    await tab.write("delete", CHAT, base=(await tab.open(CHAT))["version"]["integrity"],
                    messages=[was["messages"][0]["id"]])
    await tab.write_state("state-update", CHAT, namespace="memory", base="*", merge={"n": 2})
    await tab.write_state("state-update", CHAT, namespace="later", base=None, set=[1])
    await tab.write("metadata-update", CHAT, base="*", merge={"note": "after"})
    other = await TabClient.join(app.urls[0])
    await other.open(CHAT)
    return tab, other, created["backup"]["backup"], before, was


async def test_a_restore_is_byte_exact_and_a_new_epoch_z7(tmp_path: Path) -> None:
    """[Z7]: every tab gets `reset`, what was there is backed up first, old bases are conflicts, op numbers go on."""
    async with running(tmp_path, **QUIET) as app:
        tab, other, backup, before, was = await restored_setup(app, tmp_path)
        opened = await tab.open(CHAT)
        op = tab.ops[CHAT]

        ack = await tab.write("backup-restore", CHAT, base=opened["version"]["integrity"], backup=backup)

        assert ack["type"] == "ack", ack
        version = ack["restored"]["version"]
        assert (version["epoch"], version["seq"]) == (2, opened["head"]["seq"] + 1)
        assert ack["version"]["seq"] == version["seq"]
        for one in (tab, other):
            reset = await one.raw.receive_until(type="reset")
            assert (reset["reason"], reset["version"]) == ("restored", version)
        assert files_of(tmp_path) == before
        now = await tab.open(CHAT)
        assert (now["version"], now["head"], now["next_op"]) == (version, version, op + 2)
        assert now["messages"] == was["messages"]
        assert now["metadata"] == was["metadata"]
        states = await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["memory", "score", "later"])
        assert states["states"]["memory"] == {"version": version, "data": {"n": 1}}
        assert states["states"]["score"] == {"version": version, "data": {"points": 1}}
        assert states["states"]["later"] is None
        # What was replaced is the backup before it, and a base from before the restore is none any more.
        listed = await tab.ask("backup-list", chat=CHAT)
        assert [one["reason"] for one in listed["backups"]] == ["restore", "demand"]
        got = await tab.ask("backup-get", chat=CHAT, backup=listed["backups"][0]["backup"])
        assert texts(got["messages"]) == ["two", "three"]
        assert (await other.write("append", CHAT, base=opened["version"]["integrity"], messages=[{"mes": "late"}]))[
            "type"] == "conflict"
        stale = await other.open(CHAT, since=opened["head"])
        assert (stale["mode"], stale["reset"]) == ("snapshot", "epoch")
        # Sent again it is the first one.
        again = await tab.ask("backup-restore", chat=CHAT, op=op + 1, base=opened["version"]["integrity"],
                              backup=backup)
        assert (again.get("duplicate"), again["restored"]) == (True, ack["restored"])
        assert (await tab.append(CHAT, "and on"))["version"]["epoch"] == 2
        # The way back is a restore, too.
        back = await tab.write("backup-restore", CHAT, base="*", backup=listed["backups"][0]["backup"])
        assert back["restored"]["version"]["epoch"] == 3
        assert texts((await tab.open(CHAT))["messages"]) == ["two", "three"]
        history = await tab.ask("history", chat=CHAT, at=opened["head"]["seq"])
        assert history["code"] == "version-unknown"
    assert files_of(tmp_path)[".luker-state.later.json"] == b"[1]"


async def test_what_was_restored_is_the_same_after_a_restart_z7(tmp_path: Path) -> None:
    """[Z7] [Z8]: versions and outcomes, from the log and without it."""
    async with running(tmp_path, **QUIET) as app:
        tab, _other, backup, before, _was = await restored_setup(app, tmp_path)
        ack = await tab.write("backup-restore", CHAT, base="*", backup=backup)
        session, op = tab.session, tab.ops[CHAT]
    for without_log in (False, True):
        if without_log:
            for path in (tmp_path / ".tellback/log").iterdir():
                path.unlink()
            (tmp_path / ".tellback/term").unlink()
        async with running(tmp_path, **QUIET) as app:
            tab = await TabClient.join(app.urls[0], session)
            opened = await tab.open(CHAT)
            assert opened["version"] == ack["restored"]["version"], without_log
            assert opened["next_op"] == op + 1
            again = await tab.ask("backup-restore", chat=CHAT, op=op, base="*", backup=backup)
            assert (again.get("duplicate"), again["restored"]) == (True, ack["restored"])
            assert app.counters.outside_edits == 0
        assert files_of(tmp_path) == before


async def test_a_chat_in_the_trash_comes_out_of_a_backup_z9(tmp_path: Path) -> None:
    """[Z9]: the same id and stream, under its name or another one; nobody needs the trash for it."""
    async with running(tmp_path, **QUIET) as app:
        tab = await begun(app.urls[0], "one")
        created = await tab.ask("backup-create", chat=CHAT)
        address, before = f"id:{created['chat_id']}", files_of(tmp_path)
        for to in (None, "別の名前"):
            opened = await tab.open(address)
            ack = await tab.write("chat-delete", address, base=opened["version"]["integrity"])
            assert ack["type"] == "ack"
            assert (await tab.ask("backup-list", chat=CHAT if to is None else address))["backups"]
            deleted = await tab.ask("backup-create", chat=address)
            assert deleted["code"] == "deleted"

            ack = await tab.write("backup-restore", address, backup="last", **({} if to is None else {"to": to}))

            assert ack["type"] == "ack", ack
            name = CHAT if to is None else f"character:アリス/{to}"
            opened = await tab.open(name)
            assert (opened["chat_id"], texts(opened["messages"])) == (created["chat_id"], ["one"])
            assert opened["version"] == ack["restored"]["version"]
            assert files_of(tmp_path, name.rpartition("/")[2]) == before
        assert (await tab.ask("open", chat=CHAT, since=None))["code"] == "renamed"
        assert (await tab.append(address, "on"))["type"] == "ack"


async def test_beside_a_chat_it_is_another_one_z9(tmp_path: Path) -> None:
    """[Z9]: with an id and a stream of its own; a name that is taken is refused, and so is one that is none."""
    async with running(tmp_path, **QUIET) as app:
        tab, other, backup, before, _was = await restored_setup(app, tmp_path)
        ack = await tab.write("backup-restore", CHAT, backup=backup, to="as it was")
        made = ack["branch"]
        assert (made["chat"], made["version"]["epoch"], made["version"]["seq"]) == ("character:アリス/as it was", 1, 1)
        assert files_of(tmp_path, "as it was") == before
        opened = await tab.open(made["chat"])
        assert (opened["chat_id"], opened["version"]) == (made["chat_id"], made["version"])
        assert texts(opened["messages"]) == ["one", "two"]
        assert texts((await tab.open(CHAT))["messages"]) == ["two", "three"]
        assert (await other.append(CHAT, "nobody noticed"))["type"] == "ack"
        for to, code in (("as it was", "exists"), ("As It Was", "exists"), ("a/b", "name-illegal")):
            answer = await tab.write("backup-restore", CHAT, backup=backup, to=to)
            assert (answer["code"], answer["pointer"]) == (code, "/to"), to


@pytest.mark.parametrize("is_store", [False, True], ids=["files", "store"])
async def test_beside_a_chat_it_has_an_integrity_of_its_own_z9(tmp_path: Path, is_store: bool) -> None:
    """[Z9] [J7]: SillyTavern takes it for no other chat; what else its header tells stays, and in place all of it."""
    settings = {**QUIET, **({"store": sqlite_url(tmp_path / "store")} if is_store else {})}
    data = tmp_path / "data"
    theirs = {"integrity": "of the source", "note_prompt": "tide"}
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.write("metadata-update", CHAT, base="*", merge=theirs)
        await tab.append(CHAT, "one", "two")
        backup = (await tab.ask("backup-create", chat=CHAT))["backup"]["backup"]
        was = await tab.open(CHAT)
        made = (await tab.write("backup-restore", CHAT, backup=backup, to="as it was"))["branch"]
        assert (await tab.write("backup-restore", CHAT, base="*", backup=backup))["type"] == "ack"
        assert (await tab.raw.receive_until(type="reset"))["reason"] == "restored"
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.open(CHAT))["metadata"] == theirs
        opened = await tab.open(made["chat"])
        assert opened["metadata"] == {**theirs, "integrity": made["chat_id"]}
        assert (opened["chat_id"], opened["version"]) == (made["chat_id"], made["version"])
        assert opened["messages"] == was["messages"]


async def test_what_cannot_be_restored_changes_nothing_z10(tmp_path: Path) -> None:
    """[Z10] [Z11]: unknown, damaged, without a base, stale, of another user's chat, of no chat at all."""
    async with running(tmp_path, **QUIET) as app:
        tab, _other, backup, _before, was = await restored_setup(app, tmp_path)
        await folded(app)
        standing = files_of(tmp_path)
        answers = {
            "backup-unknown": {"backup": "1-1", "base": "*"},
            "base-required": {"backup": backup},
        }
        for code, fields in answers.items():
            assert (await tab.write("backup-restore", CHAT, **fields))["code"] == code
        stale = await tab.write("backup-restore", CHAT, backup=backup, base=was["version"]["integrity"])
        assert stale["type"] == "conflict"
        assert (await tab.ask("backup-get", chat=CHAT, backup="1-1"))["code"] == "backup-unknown"
        for request in ("backup-get", "backup-list", "backup-create"):
            assert (await tab.ask(request, chat="character:アリス/never"))["code"] == "not-found"
            assert (await tab.ask(request, chat="id:00000000-0000-4000-8000-000000000000"))["code"] == "not-found"
            assert (await tab.ask(request, chat="no address"))["code"] == "name-illegal"
        kept = next((tmp_path / "default-user/backups").rglob(f"{backup}.jsonl"))
        kept.write_bytes(kept.read_bytes()[:-3])
        for answer in (
            await tab.write("backup-restore", CHAT, backup=backup, base="*"),
            await tab.ask("backup-get", chat=CHAT, backup=backup),
        ):
            assert (answer["code"], answer["pointer"]) == ("backup-damaged", "/backup")
            assert str(tmp_path) not in answer["message"]
        assert files_of(tmp_path) == standing
        assert (await tab.append(CHAT, "on"))["type"] == "ack"


async def test_a_damaged_chat_is_restored_whole_z7(tmp_path: Path) -> None:
    """[Z7]: what is served read-only may be replaced; its bytes are in the backup before it."""
    async with running(tmp_path, **QUIET, idle_s=0.1) as app:
        tab = await begun(app.urls[0], "one")
        backup = (await tab.ask("backup-create", chat=CHAT))["backup"]["backup"]
        before = files_of(tmp_path)
        await tab.ask("close", chat=CHAT)
        await until(lambda: app._hub.actors == [])
        path = tmp_path / FOLDER / "はじめまして.jsonl"
        path.write_bytes(before[".jsonl"] + b"\0\0 torn")
        opened = await tab.open(CHAT)
        assert opened["read_only"]
        ack = await tab.write("backup-restore", CHAT, backup=backup, base=opened["version"]["integrity"])
        assert ack["type"] == "ack", ack
        assert "read_only" not in await tab.open(CHAT)
        assert files_of(tmp_path) == before
        kept = await tab.ask("backup-get", chat=CHAT, backup="last")
        assert (kept["damaged"], kept["backup"]["reason"]) == (1, "restore")


async def test_a_long_backup_comes_in_pages_z11(tmp_path: Path) -> None:
    """[Z11]: metadata and states first; pages together are the chat, and a cursor of nothing is refused."""
    async with running(tmp_path, **QUIET) as app:
        tab = await begun(app.urls[0])
        await tab.write_state("state-update", CHAT, namespace="big", base=None, set={"x": "y" * 300_000})
        for number in range(6):
            await tab.append(CHAT, f"{number}" + "z" * 120_000)
        await tab.ask("backup-create", chat=CHAT)
        said: list[str] = []
        cursor, pages, states = None, 0, {}
        while True:
            page = await tab.ask("backup-get", chat=CHAT, backup="last", cursor=cursor)
            assert page.get("first", 0) == len(said)
            said += [message["mes"][0] for message in page.get("messages", [])]
            states |= page.get("states", {})
            cursor, pages = page["cursor"], pages + 1
            if cursor is None:
                break
        assert (said, list(states)) == (list("012345"), ["big"])
        assert pages == 3
        assert (await tab.ask("backup-get", chat=CHAT, cursor="-1"))["code"] == "bad-frame"


class FullDisk(Fs):
    """A disk on which nothing new fits where `where` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.where: Callable[[str], bool] = lambda path: False

    def create(self, path: str) -> File:
        if self.where(path):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return super().create(path)


@pytest.mark.parametrize("where", ["/backups/", "/chats/"])
async def test_a_full_disk_holds_up_no_write_and_loses_none_z2(tmp_path: Path, where: str) -> None:
    """[Z2]: the forced write is acknowledged and its record keeps what it overwrote; the restore is refused."""
    fs = FullDisk()
    async with running(tmp_path, fs=fs, backup_interval_s=0.2) as app:
        tab = await begun(app.urls[0], "one")
        await folded(app)
        opened = await tab.open(CHAT)
        seen, first = opened["version"]["integrity"], opened["messages"][0]["id"]
        await until(lambda: len(backups_of(tmp_path)) == 1)
        await tab.append(CHAT, "two")
        fs.where = lambda path: where in path
        patch = [{"op": "replace", "path": "/mes", "value": "uno"}]
        ack = await tab.write("patch", CHAT, base=seen, message=first, patch=patch, force=True)
        assert ack["type"] == "ack", ack
        assert (await tab.append(CHAT, "three"))["type"] == "ack"
        for turn in range(2):
            refused = await tab.write("backup-restore", CHAT, base="*", backup="last")
            assert (refused["code"], turn) == ("storage-full", turn)
        assert (await tab.ask("backup-create", chat=CHAT))["code"] == "storage-full"
        assert app.counters.backup_failures >= (1 if where == "/backups/" else 0)
        fs.where = lambda path: False
        assert texts((await tab.open(CHAT))["messages"]) == ["uno", "two", "three"]
        assert (await tab.write("backup-restore", CHAT, base="*", backup="last"))["type"] == "ack"
        assert texts((await tab.open(CHAT))["messages"]) == ["one"]


async def test_another_programs_edit_of_the_last_moment_is_no_backup_but_adopted_z1(tmp_path: Path) -> None:
    """[Z1]: and a restore over it keeps it."""
    path = tmp_path / FOLDER / "はじめまして.jsonl"
    async with running(tmp_path, **QUIET) as app:
        tab = await begun(app.urls[0], "one")
        backup = (await tab.ask("backup-create", chat=CHAT))["backup"]["backup"]
        await folded(app)
        path.write_bytes(path.read_bytes() + b'{"mes":"theirs"}\n')
        answer = await tab.ask("backup-create", chat=CHAT)
        assert answer.get("code", "unreadable") == "unreadable"
        await until(lambda: app.counters.outside_edits == 1)
        path.write_bytes(path.read_bytes() + b'{"mes":"theirs too"}\n')
        ack = await tab.write("backup-restore", CHAT, base="*", backup=backup)
        assert ack["type"] == "ack", ack
        assert texts((await tab.open(CHAT))["messages"]) == ["one"]
        got = await tab.ask("backup-get", chat=CHAT, backup="last")
        assert texts(got["messages"]) == ["one", "theirs", "theirs too"]
