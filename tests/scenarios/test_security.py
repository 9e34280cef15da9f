"""Who may connect, whose chats they see, what is told, and where files can lie."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from tellback_server.auth import token_digest
from tests.support.raw_client import RawClient
from tests.support.server import Process, TabClient, new_session, running, sillytavern_copy, texts
from tests.support.tokens import token_file
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
ALICE, BOB = "tb_alice-token-0123456789", "tb_bob-token-0123456789"
CANARY = "canary 7f3a: only Alice may read this"


@pytest.mark.parametrize("origin", [
    "https://evil.example", "null", "http://127.0.0.1.evil.example", "https://127.0.0.1:1@evil.example",
    "http://localhost.evil.example:80", "file://", "chrome-extension://abc",
])
async def test_a_page_of_another_origin_is_refused_before_the_upgrade(tmp_path: Path, origin: str) -> None:
    async with running(tmp_path, log_segment_bytes=1 << 20) as app:
        with pytest.raises(InvalidStatus) as refused:
            await RawClient.connect(app.urls[0], origin=origin)
        assert refused.value.response.status_code == 403


async def test_own_origins_named_ones_and_programs_without_one_are_let_in(tmp_path: Path) -> None:
    async with running(tmp_path, allowed_origins="https://chat.example.com") as app:
        port = app.urls[0].split(":")[2].split("/")[0]
        for origin in (None, f"http://127.0.0.1:{port}", "http://localhost:3000", "https://chat.example.com"):
            raw = await RawClient.connect(app.urls[0], origin=origin)
            await raw.close()


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "rebound.attacker.test:8765"}, {"X-Forwarded-For": "8.8.8.8"},
    {"Forwarded": "for=8.8.8.8"}, {"Via": "1.1 proxy"}, {"CF-Connecting-IP": "8.8.8.8"},
])
async def test_a_rebound_name_or_a_proxy_in_front_of_an_open_server_is_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """Without configured users only this machine is served, whatever name it was called by."""
    async with running(tmp_path, log_segment_bytes=1 << 20) as app:
        with pytest.raises(InvalidStatus) as refused:
            await RawClient.connect(app.urls[0], headers=headers)
        assert refused.value.response.status_code in (400, 403)


async def frames_of(tab: TabClient, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to many requests."""
    return [await tab.ask(**request) for request in requests]


async def test_R38_two_users_see_nothing_of_each_other(tmp_path: Path) -> None:
    """[W8] [C9] [C12]: by name and by id the other's things are `not-found`, like what does not exist; no byte leaks.
    """
    users = token_file(tmp_path / "users.json", alice=ALICE, bob=BOB)
    data = tmp_path / "data"
    async with running(data, auth_file=str(users)) as app:
        alice = await TabClient.join(app.urls[0], token=ALICE)
        opened = await alice.open(CHAT, create=True)
        secret = f"id:{opened['chat_id']}"
        ack = await alice.append(CHAT, CANARY)
        await alice.write_state("state-update", CHAT, namespace="memory", base=None, set={"secret": CANARY})
        # The same session id for another user is another session.
        bob = await TabClient.join(app.urls[0], session=alice.session, token=BOB)
        heard: list[str] = []

        async def ask(**request: Any) -> dict[str, Any]:
            answer = await bob.ask(**request)
            heard.append(json.dumps(answer))
            return answer

        for chat in (CHAT, secret, "group:nobody"):
            requests: list[dict[str, Any]] = [
                {"type": "open", "chat": chat, "since": None},
                {"type": "open", "chat": chat, "since": ack["version"]},
                {"type": "append", "chat": chat, "op": 1, "base": "*", "messages": [{"mes": "x"}]},
                {"type": "delete", "chat": chat, "op": 1, "base": "*", "messages": ack["messages"], "force": True},
                {"type": "state-get", "owner": {"chat": chat}},
                {"type": "history", "chat": chat},
                {"type": "history", "chat": chat, "at": 1},
            ]
            for request in requests:
                answer = await ask(**request)
                assert (answer["type"], answer["code"]) == ("error", "not-found"), (request, answer)
        sentences = {json.loads(line)["message"] for line in heard}
        assert len(sentences) == 1, "no oracle: all the same, whether it exists for somebody else or for nobody"
        # A chat of the same name is another chat.
        own = await ask(type="open", chat=CHAT, create=True, since=None)
        assert own["created"] is True
        assert own["chat_id"] != opened["chat_id"]
        assert own["messages"] == []
        status = await ask(type="status")
        assert (status["connections_total"], status["owners_total"]) == (1, 1)
        await alice.append(CHAT, CANARY)
        await bob.raw.expect_silence()
        assert CANARY not in "".join(heard)
        assert (await alice.ask("ping"))["type"] == "pong", "Bob's hello took nothing over"
    assert {path.name for path in data.iterdir()} >= {"alice", "bob"}
    assert CANARY in (data / "alice/chats/Alice/First meeting.jsonl").read_text()
    assert all(CANARY not in path.read_text() for path in (data / "bob").rglob("*") if path.is_file())


@pytest.mark.parametrize("token", [None, "", "wrong", ALICE + " ", ALICE.upper(), "x" * 5000])
async def test_without_a_good_token_the_connection_ends_with_4502(tmp_path: Path, token: str | None) -> None:
    """[C9]: and nothing of the server was shown before."""
    users = token_file(tmp_path / "users.json", alice=ALICE)
    with capture_logs() as logs:
        async with running(tmp_path / "data", auth_file=str(users), log_segment_bytes=1 << 20) as app:
            raw = await RawClient.connect(app.urls[0])
            await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": token})
            frame = await raw.receive()
            assert (frame["type"], frame["code"], frame["retry"]) == ("error", "unauthenticated", "after-auth")
            assert await raw.wait_closed() == 4502
    assert ALICE not in repr(logs)
    assert token is None or len(token) < 4 or token not in repr(logs)


async def test_a_fresh_token_must_be_of_the_same_user(tmp_path: Path) -> None:
    """[C9] [W3]: a refused `auth` is told to its request, then the connection closes."""
    users = token_file(tmp_path / "users.json", alice=ALICE, bob=BOB)
    async with running(tmp_path / "data", auth_file=str(users)) as app:
        alice = await TabClient.join(app.urls[0], token=ALICE)
        again = await alice.ask("auth", token=ALICE)
        assert (again["type"], again["user"]) == ("welcome", "alice")
        await alice.raw.send({"type": "auth", "id": 9, "token": BOB})
        refused = await alice.raw.receive()
        assert (refused["type"], refused["code"], refused["id"]) == ("error", "forbidden", 9)
        assert await alice.raw.wait_closed() == 4503
        bob = await TabClient.join(app.urls[0], token=BOB)
        await bob.raw.send({"type": "auth", "id": 10, "token": "no such token"})
        refused = await bob.raw.receive()
        assert (refused["code"], refused["id"]) == ("unauthenticated", 10)
        assert await bob.raw.wait_closed() == 4502


async def test_a_token_that_is_revoked_ends_the_open_connection(tmp_path: Path) -> None:
    """[C9]: without a restart, and the other user stays."""
    users = token_file(tmp_path / "users.json", alice=ALICE, bob=BOB)
    async with running(tmp_path / "data", auth_file=str(users), heartbeat_ms=100) as app:
        alice = await TabClient.join(app.urls[0], token=ALICE)
        bob = await TabClient.join(app.urls[0], token=BOB)
        await alice.open(CHAT, create=True)
        token_file(users, bob=BOB)
        assert await alice.raw.wait_closed() == 4502
        assert (await alice.raw.receive_until(type="error"))["code"] == "unauthenticated"
        assert (await bob.ask("ping"))["type"] == "pong"


async def test_no_token_and_no_text_of_a_chat_is_ever_in_the_log_and_files_are_private(tmp_path: Path) -> None:
    """The whole process at its most talkative: all of stderr is searched. New files are 0600, folders 0700."""
    users = token_file(tmp_path / "users.json", alice=ALICE)
    data = tmp_path / "data"
    process = Process(data, "--auth-file", str(users), "--log-level", "debug", "--checkpoint-interval", "0.02")
    previous = os.umask(0o000)
    try:
        await process.start()
    finally:
        os.umask(previous)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(process.__aexit__)
        tab = await TabClient.join(process.url, token=ALICE)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, CANARY)
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"secret": CANARY})
        await tab.ask("auth", token=ALICE)
        for token in ("tb_guessed-token-1", ALICE + "x"):
            with pytest.raises(InvalidStatus):
                await RawClient.connect(f"{process.url}?token={ALICE}")
            raw = await RawClient.connect(process.url, headers={"Authorization": f"Bearer {ALICE}"})
            await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": token})
            assert await raw.wait_closed() == 4502
        await tab.raw.send_raw(b'{"type":"append","token":"%b","messages":}' % ALICE.encode())
        await tab.raw.receive_until(type="error")
        await until(lambda: (data / "alice/chats/Alice/First meeting.luker-state.memory.json").exists())
        await tab.close()
        assert await process.stop() == 0
    log = process.errors.read_text()
    assert "tab-accepted" in log
    for secret in (ALICE, token_digest(ALICE), "guessed-token", CANARY):
        assert secret not in log
    for path in data.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} {mode:o}"


async def refused_everywhere(app: Any, chat: str, code: str) -> None:
    """Reading, writing and making."""
    tab = await TabClient.join(app.urls[0])
    answers = [
        await tab.ask("open", chat=chat, since=None),
        await tab.ask("append", chat=chat, op=1, base="*", messages=[{"mes": "x"}]),
        await tab.ask("open", chat=chat, since=None, create=True),
    ]
    assert [answer.get("code", answer["type"]) for answer in answers] == [code] * 3, answers


async def test_links_out_of_the_data_folder_are_not_followed(tmp_path: Path) -> None:
    """[N2] [W8]: a chat that is a link, a character's folder that is one, a link to a link, and a dangling one."""
    outside = tmp_path / "outside"
    (outside / "Eve").mkdir(parents=True)
    target = outside / "Eve" / "secret.jsonl"
    target.write_text('{"chat_metadata":{}}\n{"mes":"' + CANARY + '"}\n')
    data = tmp_path / "data"
    chats = data / "default-user" / "chats"
    (chats / "Alice").mkdir(parents=True)
    (chats / "Alice" / "link.jsonl").symlink_to(target)
    (chats / "Alice" / "dangling.jsonl").symlink_to(outside / "nothing.jsonl")
    (chats / "Alice" / "twice.jsonl").symlink_to(chats / "Alice" / "link.jsonl")
    (chats / "Eve").symlink_to(outside / "Eve")
    before = target.read_bytes()
    async with running(data) as app:
        for chat in ("Alice/link", "Alice/dangling", "Alice/twice", "Eve/secret", "Eve/new"):
            await refused_everywhere(app, f"character:{chat}", "unsafe-file")
    assert target.read_bytes() == before
    assert {path.name for path in outside.rglob("*")} == {"Eve", "secret.jsonl"}


async def test_R25_missing_unsafe_and_unreadable_are_different_answers_and_none_is_an_empty_chat(
    tmp_path: Path,
) -> None:
    """[W8]: a folder, a FIFO, a socket and a device where a chat should be; they are left as they are."""
    data = tmp_path / "data"
    folder = data / "default-user" / "chats" / "Alice"
    folder.mkdir(parents=True)
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "fifo.jsonl")
    os.mknod(folder / "device.jsonl", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    async with running(data) as app:
        for name in ("folder", "fifo", "device"):
            await refused_everywhere(app, f"character:Alice/{name}", "unsafe-file")
        tab = await TabClient.join(app.urls[0])
        gone = await tab.open("character:Alice/nobody")
        assert (gone["type"], gone["code"], gone["retry"]) == ("error", "not-found", "never")
    assert stat.S_ISFIFO((folder / "fifo.jsonl").stat().st_mode)
    assert (folder / "folder.jsonl").is_dir()


async def test_R25_R41_a_damaged_chat_is_served_read_only_and_kept_byte_for_byte(tmp_path: Path) -> None:
    """[D1], STORAGE F4: what can be read is served, the rest is told; writes are refused until the repair."""
    data = sillytavern_copy(tmp_path)
    path = data / "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"
    chat = "character:Pip/Pip - 2024-11-01@12h00m00s"
    whole = path.read_bytes().split(b"\n")
    poisons: dict[str, list[bytes]] = {
        "a torn line": [*whole[:5], whole[5][: len(whole[5]) // 2], *whole[6:]],
        "binary rubbish": [*whole[:3], b"\x00\xff\xfe\x80 rubbish", *whole[3:]],
        "an array": [*whole[:3], b"[1,2,3]", *whole[3:]],
        "no header": [b"\x80\x81", *whole[1:]],
    }
    for name, lines in poisons.items():
        path.write_bytes(b"\n".join(lines))
        before = path.read_bytes()
        async with running(data, idle_s=0.05) as app:
            tab = await TabClient.join(app.urls[0])
            opened = await tab.open(chat)
            if opened["type"] == "error":
                assert name == "no header", opened
                assert opened["code"] in ("unreadable", "read-only")
            else:
                assert opened["read_only"] is True, name
                assert len(opened["damage"]) == 1
                assert opened["count"] >= len(whole) - 3, "the rest is served"
                refused = await tab.ask("append", chat=chat, op=1, base="*", messages=[{"mes": "x"}])
                assert (refused["type"], refused["code"], refused["retry"]) == ("error", "read-only", "after-sync")
                for request in ("metadata-update", "delete"):
                    fields = {"set": {}} if request == "metadata-update" else {"messages": [], "force": True}
                    answer = await tab.ask(
                        request, chat=chat, op=1, base=opened["version"]["integrity"], **fields)
                    assert answer["code"] == "read-only"
            # Another chat of the same folder is not concerned.
            other = await tab.open("character:Pip/Pip - 2024-09-30@09h00m00s")
            assert "read_only" not in other
        assert path.read_bytes() == before, name
    path.write_bytes(b"\n".join(whole))
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert "read_only" not in await tab.open(chat)
        assert (await tab.append(chat, "repaired"))["type"] == "ack"


async def test_R25_a_corrupt_state_is_an_error_and_not_null(tmp_path: Path) -> None:
    """[W8]: and nothing is written over what could not be read."""
    data = tmp_path / "data"
    folder = data / "default-user" / "chats" / "Alice"
    folder.mkdir(parents=True)
    (folder / "First meeting.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"one"}\n')
    (folder / "First meeting.luker-state.memory.json").write_text('{"torn":')
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        assert texts(opened["messages"]) == ["one"]
        state = await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["memory"])
        assert (state["type"], state["code"], state["retry"]) == ("error", "state-corrupt", "after-sync")
        write = await tab.ask("state-update", owner={"chat": CHAT}, op=1, namespace="memory", base=None, set={})
        assert write["type"] in ("error", "conflict")
    assert (folder / "First meeting.luker-state.memory.json").read_text() == '{"torn":'
