"""What an op led to is known for as long as it is promised: through kills, busy chats and a log that is let go."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tellback_protocol.chat import Chat
from tellback_protocol.stream import Stream
from tellback_server import retention
from tellback_server.app import App
from tellback_server.fs import Fs
from tellback_server.sealed import seal, unseal
from tellback_server.sessions import fold_sessions, read_sessions
from tellback_server.store.files import FileStore
from tests.support.chat_desk import SilentLogger
from tests.support.forked_server import ForkedServer
from tests.support.injected_fs import InjectedFs
from tests.support.server import TabClient, new_session, running, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OTHER = "character:Alice/Another"
FILE = "default-user/chats/Alice/First meeting.jsonl"
SMALL_LOG: dict[str, Any] = {
    "log_segment_bytes": 64 << 10, "log_retain_bytes": 0, "log_retain_days": 0, "checkpoint_interval_s": 0.02,
}


async def many(tab: TabClient, chat: str, count: int, size_bytes: int = 2) -> None:
    """Appends, fifty in flight."""
    opened = await tab.open(chat, create=True)
    first = opened["next_op"]
    message = [{"mes": "x" * size_bytes}]
    for done in range(0, count, 50):
        ops = range(first + done, first + min(done + 50, count))
        for op in ops:
            await tab.raw.send({"type": "append", "id": op, "chat": chat, "op": op, "base": "*", "messages": message})
        for op in ops:
            assert (await tab.raw.receive_until(id=op))["type"] == "ack"
    tab.requests = first + count


async def folded(app: App) -> None:
    await until(lambda: app._keeper.lag_s() == 0 and not any(actor.folding for actor in app._hub.actors))


async def let_go(app: App) -> None:
    """Until the first records are gone: a look in which an owner is being loaded lets nothing go."""

    async def is_gone() -> bool:
        await app._keeper._collect()
        return app._log.first_retained > 5

    await until(is_gone)


async def again(url: str, session: str, chat: str, op: int, mes: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`opened` and the answer to an append that is sent again."""
    tab = await TabClient.join(url, session)
    opened = await tab.open(chat)
    return opened, await tab.ask("append", chat=chat, op=op, base="*", messages=[{"mes": mes}])


async def test_an_old_op_of_a_busy_chat_is_known_after_a_kill(tmp_path: Path) -> None:
    """[O9]: 2,200 commits of another tab behind it, a checkpoint, kill -9: it is not carried out twice."""
    async with ForkedServer(tmp_path / "data", checkpoint_interval_s=0.2) as server:
        slow = await TabClient.join(server.url)
        await slow.open(CHAT, create=True)
        ack = await slow.ask("append", chat=CHAT, op=1, base="*", messages=[{"mes": "only once"}])
        await many(await TabClient.join(server.url), CHAT, 2200)
        await until(lambda: b'"seq":2202' in sync_of(tmp_path / "data"))
        await server.kill()
        await server.start()
        opened, answer = await again(server.url, slow.session, CHAT, 1, "only once")
        assert opened["next_op"] == 2
        assert (answer["version"], answer.get("duplicate")) == (ack["version"], True)


def session_files(data: Path) -> list[Path]:
    return list(data.glob(".tellback/sessions/default-user/*.json"))


def sync_of(data: Path) -> bytes:
    path = data / FILE.replace(".jsonl", ".luker-state.chat_sync.json")
    return path.read_bytes().replace(b" ", b"") if path.exists() else b""


async def test_a_chat_that_is_never_idle_gets_a_session_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[O9]: so what a start reads of the log is bounded, whatever the chat's age."""
    monkeypatch.setattr(retention, "RECORDS_UNSAVED_MAX", 2048)
    async with running(tmp_path, checkpoint_interval_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        await many(tab, CHAT, 2500)
        await until(lambda: bool(session_files(tmp_path)))
        [path] = session_files(tmp_path)
        saved = json.loads(path.read_bytes().splitlines()[0])
        assert saved["seq"] > 2048
        assert saved["sessions"][tab.session]["last"] == saved["seq"] - 1, "as the log had it when it was written"


async def test_the_log_is_let_go_only_when_nobody_open_or_not_needs_it(tmp_path: Path) -> None:
    """[O9] STORAGE [R4]: acks and a conflict of a chat that nobody opened since the kill."""
    data = tmp_path / "data"
    session = new_session()
    async with ForkedServer(data, checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT, create=True)
        first = await tab.ask("append", chat=CHAT, op=1, base="*", messages=[{"mes": "only once"}])
        stale = "00000000-0000-4000-8000-000000000000"
        refused = await tab.ask("append", chat=CHAT, op=2, base=stale, messages=[{"mes": "n"}])
        assert refused["type"] == "conflict"
        await until(lambda: b'"seq":2' in sync_of(data))
        await server.kill()
    async with running(data, **SMALL_LOG) as app:
        other = await TabClient.join(app.urls[0])
        await many(other, OTHER, 100, 3000)
        await folded(app)
        before = app._log.segment_count
        await let_go(app)
        assert app._log.segment_count < before
        opened, answer = await again(app.urls[0], session, CHAT, 1, "only once")
        assert opened["next_op"] == 3
        assert (answer["version"], answer["duplicate"]) == (first["version"], True)
        assert texts(opened["messages"]) == ["only once"]


async def test_a_session_file_that_cannot_be_written_holds_the_log(tmp_path: Path) -> None:
    """[O9] [R4]: the actor ends, the log stays and says why; with room again it goes, and nothing is forgotten."""
    fs = InjectedFs()
    async with running(tmp_path, fs=fs, idle_s=0.05, **SMALL_LOG) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        ack = await tab.ask("append", chat=CHAT, op=1, base="*", messages=[{"mes": "only once"}])
        await folded(app)
        write = fs.write_atomically

        def refuse(path: str, data: bytes, *rest: Any, **named: Any) -> Any:
            if "/sessions/" in path:
                raise OSError(errno.ENOSPC, "no room")
            return write(path, data, *rest, **named)

        fs.write_atomically = refuse  # type: ignore[method-assign]
        tab.raw.abort()
        await until(lambda: not app._hub.actors)
        other = await TabClient.join(app.urls[0])
        await many(other, OTHER, 100, 3000)
        await folded(app)
        with capture_logs() as logs:
            await app._keeper._collect()
        assert app._log.first_retained == 1
        assert app._keeper.retention.segments_held > 0
        assert "log-segments-held" in [line["event"] for line in logs]
        fs.write_atomically = write  # type: ignore[method-assign]
        await let_go(app)
        _, answer = await again(app.urls[0], tab.session, CHAT, 1, "only once")
        assert (answer["version"], answer["duplicate"]) == (ack["version"], True)


async def test_a_kept_answer_is_written_once(tmp_path: Path) -> None:
    """[O9] [K4]: opening and leaving a chat without a write writes no session file again."""
    async with running(tmp_path, idle_s=0.05) as app:
        tab = await TabClient.join(app.urls[0])
        await many(tab, CHAT, 3)
        await folded(app)
        tab.raw.abort()
        await until(lambda: not app._hub.actors)
        [path] = session_files(tmp_path)
        before = path.stat().st_ino
        reader = await TabClient.join(app.urls[0])
        await reader.open(CHAT)
        reader.raw.abort()
        await until(lambda: not app._hub.actors)
        assert path.stat().st_ino == before


async def test_a_session_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """[O9]: it held commits as strings without their braces."""
    async with running(tmp_path) as app:
        await many(await TabClient.join(app.urls[0]), CHAT, 3)
    [path] = session_files(tmp_path)
    unsealed = unseal(path.read_bytes())
    assert unsealed is not None
    cores = [msgspec.json.encode(past["core"])[1:-1] for past in json.loads(unsealed[0])["history"]]
    saved = json.loads(unsealed[0])
    for past, core in zip(saved["history"], cores, strict=True):
        past["core"] = core.decode()

    for data in (unsealed[0], json.dumps(saved).encode()):
        path.write_bytes(seal(data))
        read = read_sessions(FileStore(Fs(), str(tmp_path), logger=SilentLogger()), "default-user", path.stem)
        assert read is not None
        stream = Stream("default-user", CHAT, path.stem, Chat(read.history_from))
        fold_sessions(read, stream)
        assert len(cores) == 4, "the creation and three appends"
        assert [past.core for past in stream.history] == cores


async def test_an_op_of_a_chat_that_another_program_deleted_keeps_its_answer(tmp_path: Path) -> None:
    """[O2] [O10]: by name and by id, live and after a restart, an ack and a conflict; anything else is not-found. What
    no file held is in a backup, and the server's log says where."""
    data = tmp_path / "data"
    stale = "00000000-0000-4000-8000-000000000000"
    async with ForkedServer(data, checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url)
        chat_id = f"id:{(await tab.open(CHAT, create=True))['chat_id']}"
        asked = [
            {"op": 1, "base": "*", "messages": [{"mes": "one"}]}, {"op": 2, "base": stale, "messages": [{"mes": "n"}]},
        ]
        ack, conflict = [await tab.ask("append", chat=CHAT, **one) for one in asked]
        await until(lambda: b'"seq":2' in sync_of(data))
        (data / FILE).unlink()
        for _ in range(3):
            tab = await TabClient.join(server.url, tab.session)

            async def is_gone(tab: TabClient = tab) -> bool:
                return (await tab.open(CHAT)).get("code") == "not-found"

            # A checkpoint that runs just now finds it by itself, a moment later.
            await until(is_gone)
            for chat in (CHAT, chat_id):
                again, refused = [await tab.ask("append", chat=chat, **one) for one in asked]
                assert (again["type"], again["version"], again["duplicate"]) == ("ack", ack["version"], True)
                assert (refused["type"], refused["version"]) == ("conflict", conflict["version"])
                new = await tab.ask("append", chat=chat, op=3, base="*", messages=[{"mes": "new"}])
                assert new["code"] == "not-found"
                other = await tab.ask("append", chat=chat, op=1, base="*", messages=[{"mes": "another"}])
                assert other["code"] == "not-found"
            await server.kill()
            await server.start()


async def test_a_pending_message_of_a_deleted_chat_is_in_a_backup_that_the_log_names(tmp_path: Path) -> None:
    """[F9] [O10]"""
    with capture_logs() as logs:
        async with running(tmp_path, checkpoint_interval_s=0.05) as app:
            tab = await TabClient.join(app.urls[0])
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "in the file")
            await folded(app)
            (tmp_path / FILE).unlink()
            await tab.append(CHAT, "in no file")
            assert (await tab.raw.receive_until(type="reset"))["reason"] == "failed"
    [line] = [line for line in logs if line["event"] == "chat-deleted-outside"]
    assert line["pending"] == 1
    [backup] = line["backups"]
    assert b"in no file" in (tmp_path / "default-user" / backup).read_bytes()


async def test_long_answers_are_kept_short_and_told_whole(tmp_path: Path) -> None:
    """[O11] [O8]: merges of 300 KB, an append of 500 messages; after a restart; with and without the log."""
    big = "q" * 300_000
    asked: list[tuple[str, dict[str, Any]]] = [
        ("metadata-update", {"op": 1, "base": "*", "merge": {"k": big}}),
        ("append", {"op": 2, "base": "*", "messages": [{"mes": str(number)} for number in range(500)]}),
        ("metadata-update", {"op": 3, "base": "*", "merge": {"k": big + "r"}}),
    ]
    acks: list[dict[str, Any]] = []
    session = new_session()

    async def resent(url: str) -> list[dict[str, Any]]:
        tab = await TabClient.join(url, session)
        answers = [await tab.ask(type, chat=CHAT, **fields) for type, fields in asked]
        return [{**answer, "id": 0} for answer in answers]

    async with running(tmp_path, idle_s=0.05) as app:
        tab = await TabClient.join(app.urls[0], session)
        await tab.open(CHAT, create=True)
        acks += [{**(await tab.ask(type, chat=CHAT, **fields)), "id": 0, "duplicate": True} for type, fields in asked]
        assert await resent(app.urls[0]) == acks
        [actor] = app._hub.actors
        assert actor.stream is not None
        kept = dict(actor.stream.sessions[session].outcomes())
        assert sum(len(outcome.body) for outcome in kept.values()) < 1000
    async with running(tmp_path, **SMALL_LOG) as app:
        assert await resent(app.urls[0]) == acks
        await many(await TabClient.join(app.urls[0]), OTHER, 100, 3000)
        await folded(app)
        await let_go(app)
        for answer, ack in zip(await resent(app.urls[0]), acks, strict=True):
            wanted = {name: value for name, value in ack.items() if name not in ("ops", "messages")}
            assert answer == {**wanted, "resync": True}
    assert sum(path.stat().st_size for path in session_files(tmp_path)) < 1 << 21
