"""`tellback generations` and the live text of `tellback tail`: real servers, real processes, a real terminal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tellback_protocol.codec import decode_server
from tellback_server.commands.tail import Teller
from tellback_server.live_texts import Growth, LiveTexts
from tellback_server.tail import News, tail_chat
from tests.scenarios.test_generations import CHAT, delta, durable, end, start
from tests.server.test_cli import run as invoke
from tests.support.server import Process, TabClient
from tests.support.waiting import GUARD_S

TEXT = "Once \U0001f989 upon.\n\nA time\x1b[2J, ok ok ok."
SAFE = "Once \U0001f989 upon.\n\nA time\\x1b[2J, ok ok ok."


async def command(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tellback_server", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `tellback generations ...`, in a thread of its own."""
    result = await asyncio.to_thread(invoke, "generations", *arguments)
    return result.exit_code, result.stdout, result.stderr


async def writing(server: Process, text: str = TEXT, **fields: Any) -> TabClient:
    """A tab that writes a reply."""
    tab = await TabClient.join(server.url)
    await tab.open(CHAT, create=True)
    await start(tab, **fields)
    await delta(tab, 0, text)
    await durable(tab, len(text.encode("utf-16-le")) // 2)
    return tab


async def test_replies_are_listed_shown_and_stopped(tmp_path: Path) -> None:
    """[T8, T13] By id, by the beginning of one, or without; in words and as JSON."""
    async with Process(tmp_path / "data", "--create") as server:
        where = ("--url", server.url)
        tab = await writing(server, reply={"name": "Alice"})
        code, out, errors = await run("list", *where)
        assert (code, errors) == (0, "")
        heads, line = out.splitlines()
        assert heads.split() == ["generation", "state", "started", "by", "target", "chat"]
        assert line.split()[:2] == ["g1", "running"]
        assert line.rstrip().endswith(CHAT)
        code, out, _ = await run("show", CHAT, *where)
        assert code == 0
        assert SAFE in out
        assert "\x1b" not in out
        code, out, _ = await run("show", CHAT, "g", "--json", *where)
        told = json.loads(out)
        assert (told["generation"], told["entry"]["state"], told["text"]) == ("g1", "running", TEXT)

        code, out, _ = await run("cancel", CHAT, "--json", *where)
        told = json.loads(out)
        assert (code, told["generation"], told["state"], told["stored"]) == (0, "g1", "cancelled", True)
        assert (await tab.raw.receive_until(type="generation-stored"))["message"] == told["message"]
        code, out, errors = await run("cancel", CHAT, "g1", *where)
        assert (code, out, errors) == (1, "", "tellback: generation-ended: This generation has ended: cancelled.\n")
        code, out, _ = await run("show", CHAT, "--json", *where)
        assert json.loads(out)["text"] == TEXT
        assert json.loads((await run("list", CHAT, "--json", *where))[1])["entry"]["state"] == "cancelled"
        assert (await run("list", "--running", *where))[:2] == (0, "")

        code, _, errors = await run("show", CHAT, "zzz", *where)
        assert (code, errors) == (1, "tellback: generation-unknown: The chat has no generation 'zzz'.\n")
        await start(tab, "g2")
        await tab.append(CHAT, "and")
        await start(tab, "g3")
        code, _, errors = await run("cancel", CHAT, *where)
        assert (code, errors) == (1, "tellback: generation-unknown: Which one? g2, g3\n")
        code, out, _ = await run("cancel", CHAT, "g3", *where)
        assert (code, out) == (0, "cancelled: g3  there was no text\n")
    # A folder that nobody serves: its private server ends what nobody writes any more.
    code, out, _ = await run("list", "--json", "--data", str(tmp_path / "data"))
    assert code == 0
    assert sorted(json.loads(line)["generation"] for line in out.splitlines()) == ["g1", "g2", "g3"]
    assert (await run("show", CHAT, "--follow", "--data", str(tmp_path / "data")))[0] == 78


async def test_following_goes_on_through_a_kill_and_ends_with_the_reply(tmp_path: Path) -> None:
    """[T11, R10] Every letter once, though the server that comes back has less than was shown."""
    async with Process(tmp_path / "data", "--create") as server:
        tab = await writing(server, "Once ")
        following = await command("generations", "show", CHAT, "--follow", "--url", server.url)
        watching = await command("tail", CHAT, "--url", server.url)
        assert following.stdout is not None
        assert watching.stdout is not None
        assert await following.stdout.readexactly(5) == b"Once "
        while b"opened" not in await watching.stdout.readline():
            pass
        await delta(tab, 5, "upon a\n\U0001f989")
        assert (await following.stdout.readexactly(11)).decode() == "upon a\n\U0001f989"
        assert await watching.stdout.readline() == b"  message  User: And then?\n"
        assert await watching.stdout.readline() == b"  writing  Once upon a\n"
        await server.kill()
        await server.start()
        again = await TabClient.join(server.url, tab.session)
        (listed,) = (await again.open(CHAT))["generations"]
        await delta(again, listed["offset"], "Once upon a\n\U0001f989 time"[listed["offset"] :])
        await end(again)
        async with asyncio.timeout(GUARD_S):
            out, errors = await following.communicate()
        assert (out.decode(), errors.decode()) == (" time\n", "tellback: stored\n")
        lines: list[str] = []
        async with asyncio.timeout(GUARD_S):
            while not lines or "stored" not in lines[-1]:
                lines.append((await watching.stdout.readline()).decode())
        watching.kill()
        await watching.wait()
        assert [line for line in lines if "writing" in line] == ["  writing  \U0001f989 time\n"]
        # In a pipe a message is told whole all the same.
        assert "".join(lines).count("Once upon a\n\U0001f989 time") == 1


async def test_tail_on_a_terminal_shows_a_reply_as_one_line_that_grows(tmp_path: Path) -> None:
    async with Process(tmp_path / "data", "--create") as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        master, slave = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tellback_server", "tail", CHAT, "--url", server.url,
            stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
        )
        os.close(slave)
        seen = ""

        async def until(text: str) -> None:
            nonlocal seen
            async with asyncio.timeout(GUARD_S):
                while text not in seen:
                    seen += (await asyncio.to_thread(os.read, master, 4096)).decode().replace("\r\n", "\n")

        try:
            await until("opened")
            await start(tab)
            await delta(tab, 0, "Once ")
            await until("Alice: Once ")
            await delta(tab, 5, "upon a time.")
            await until("time.")
            assert "writing  Alice: Once upon a time." in seen
            await end(tab)
            await until("the reply is in the chat")
            assert "   stored  Alice: the reply is in the chat" in seen
            assert seen.count("upon a time.") == 1
        finally:
            process.kill()
            await process.wait()
            os.close(master)


async def test_tail_attaches_to_fill_a_gap_and_joins_a_reply_that_runs(tmp_path: Path) -> None:
    async with Process(tmp_path / "data", "--create") as server:
        tab = await writing(server, "Once ")
        news = tail_chat(server.url, CHAT, None, 0)
        told: list[News] = []
        async with asyncio.timeout(GUARD_S):
            while not told or told[-1].text != "upon":
                told.append(await anext(news))
                if told[-1].what == "opened":
                    await delta(tab, 5, "upon")
        assert [(line.text, line.growth and line.growth.is_first) for line in told if line.what == "writing"] == [
            ("Once ", True), ("upon", False),
        ]
        await news.aclose()


def frame(type: str, **fields: Any) -> Any:
    return decode_server(json.dumps({
        "type": type, "chat": CHAT, "generation": "g1", "target": {"kind": "message"}, "message": "r1",
        "state": "running", "by": "x" * 16, "durable": 0, **fields,
    }).encode())


def test_live_texts_give_each_unit_once() -> None:
    """[T5, T6] What is there is left out, a gap is asked for, another text is begun again."""
    live = LiveTexts()
    assert list(live.started(frame("generation-started", text="a\U0001f600", offset=3))) == [
        Growth("g1", "a\U0001f600", is_first=True)
    ]
    assert list(live.delta(frame("generation-delta", offset=1, text="\U0001f600b"))) == [Growth("g1", "b")]
    assert list(live.delta(frame("generation-delta", offset=1, text="\U0001f600"))) == []
    assert list(live.delta(frame("generation-delta", offset=9, text="x"))) == []
    assert live.gaps == {"g1"}
    live.gaps.clear()
    assert list(live.started(frame("generation-started", text="a", offset=1))) == []
    assert list(live.started(frame("generation-started", text="a\U0001f600bcx", offset=6))) == [Growth("g1", "cx")]
    assert list(live.delta(frame("generation-delta", generation="g2", offset=4, text="x"))) == []
    assert live.gaps == {"g2"}
    assert list(live.started(frame("generation-started", text="other", offset=5))) == [
        Growth("g1", "other", is_first=True)
    ]


@pytest.mark.parametrize(
    ("is_terminal", "shown"),
    [
        (True, "  writing  A: one\n  writing  B: two\n  writing  A: … more\n      new  A: hi\n   stored  A: kept\n"),
        (False, "      new  A: hi\n  writing  A: one more\n      new  A: one more\n   stored  A: kept\n"
                "  writing  B: two\n"),
    ],
)
def test_two_replies_at_a_time_do_not_mix(is_terminal: bool, shown: str) -> None:
    file = io.StringIO()
    teller = Teller(Console(file=file, force_terminal=is_terminal, color_system=None, soft_wrap=True))
    for news in (
        News("writing", "one", "A", growth=Growth("g1", "one", is_first=True)),
        News("writing", "two", "B", growth=Growth("g2", "two", is_first=True)),
        News("writing", " more", "A", growth=Growth("g1", " more")),
        News("new", "hi", "A"),
        News("writing", "", "A", growth=Growth("g1", "", is_last=True)),
        News("new", "one more", "A", was_read=True),
        News("stored", "kept", "A"),
    ):
        teller.tell(news)
    teller.end()
    assert file.getvalue() == shown
