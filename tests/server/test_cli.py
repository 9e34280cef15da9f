"""The command line: first line, signals, exit codes, sentences instead of tracebacks, and what each command shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import jwt
import orjson
import pytest
from typer.testing import CliRunner, Result
from websockets.asyncio.client import ClientConnection, connect

from tellback_protocol.codec import decode_server
from tellback_protocol.effects import AppendEffect, DeleteEffect, Effect, MetadataEffect, PatchEffect, StateEffect
from tellback_protocol.frames import Ack, Opened, ServerFrame, Welcome
from tellback_protocol.ids import Version
from tellback_server.__main__ import COMMANDS, app
from tellback_server.auth import RELOAD_INTERVAL_S, TokenFile, token_digest
from tellback_server.clock import Clock
from tellback_server.config import Settings, variable_of
from tellback_server.demo import LIVE_CHAT, has_chats, remove_folder, write_demo
from tellback_server.doctor import SYNC_SUSPICIOUS_S, check_all, mount_of
from tellback_server.fs import File, Fs
from tellback_server.log import Log
from tellback_server.tail import News, news_of, tail_chat
from tests.support.warm_server import WarmPopen

COMMAND = [sys.executable, "-m", "tellback_server"]
START_TIMEOUT_S = 45
ANSWER_TIMEOUT_S = 45


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*Settings.model_fields, "url", "token"):
        monkeypatch.delenv(variable_of(name), raising=False)
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Server:
    """`tellback serve` or `demo` as a process."""

    def __init__(self, process: subprocess.Popen[str] | WarmPopen) -> None:
        self.process = process
        self.url = ""

    def started(self) -> Server:
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().rstrip("\n")
        return self

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=START_TIMEOUT_S)
        return self.process.returncode, out, errors


def people_start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The interpreter, and everything imported."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Parametrized with `people_start` it is the whole process, otherwise a fork of one that imported everything."""
    made: list[Server] = []

    def make(*arguments: object, **environment: str) -> Server:
        made.append(Server(getattr(request, "param", WarmPopen)(*arguments, **environment)))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        if one.process.stdout is not None and not one.process.stdout.closed:
            one.process.communicate()


class Tab:
    """A client of a few lines, over the websockets library."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def ask(self, frame: dict[str, object]) -> ServerFrame:
        await self.socket.send(orjson.dumps(frame), text=True)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return decode_server(str(await self.socket.recv()).encode())


@contextlib.asynccontextmanager
async def tab(url: str, token: str | None = None) -> AsyncIterator[Tab]:
    async with connect(url) as connection:
        one = Tab(connection)
        answer = await one.ask({"type": "hello", "protocol": 1, "session": "s" * 20, "token": token})
        assert isinstance(answer, Welcome), answer
        yield one


async def append(one: Tab, chat: str, text: str) -> None:
    opened = await one.ask({"type": "open", "id": 1, "chat": chat, "create": True, "since": None})
    assert isinstance(opened, Opened), opened
    message = {"name": "You", "is_user": True, "mes": text}
    answer = await one.ask(
        {"type": "append", "id": 2, "chat": chat, "op": opened.next_op, "base": "*", "messages": [message]}
    )
    assert isinstance(answer, Ack), answer


# -- serve -----------------------------------------------------------------------------------------------------------


AS_PEOPLE_START_IT = pytest.mark.parametrize("server", [people_start], indirect=True, ids=["cold"])


@AS_PEOPLE_START_IT
def test_the_first_line_is_the_url_and_sigterm_ends_with_0(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path / "data", "--port", 0).started()
    assert re.fullmatch(r"ws://127\.0\.0\.1:[0-9]+/ws", one.url)
    code, out, errors = one.stop()
    assert (code, out) == (0, "")
    assert all(json.loads(line)["event"] for line in errors.splitlines())


@AS_PEOPLE_START_IT
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigint_ends_with_0_too(tmp_path: Path, server: Callable[..., Server], loop: str) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0, "--loop", loop).started()
    assert one.stop(signal.SIGINT)[0] == 0


async def test_what_was_acknowledged_is_in_the_file_at_the_end(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0, "--checkpoint-interval", 3600).started()
    async with tab(one.url) as client:
        await append(client, "character:Ann/One", "stored")
        code, _, _ = await asyncio.to_thread(one.stop)
    assert code == 0
    chat = tmp_path / "default-user" / "chats" / "Ann" / "One.jsonl"
    assert "stored" in chat.read_text()
    assert chat.stat().st_mode & 0o077 == 0


@AS_PEOPLE_START_IT
async def test_a_killed_server_tells_the_same_after_its_restart(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0, "--checkpoint-interval", 3600).started()
    async with tab(one.url) as client:
        await append(client, "character:Ann/One", "stored")
        one.stop(signal.SIGKILL)
    other = server("serve", "--data", tmp_path, "--port", 0).started()
    async with tab(other.url) as client:
        opened = await client.ask({"type": "open", "id": 1, "chat": "character:Ann/One", "since": None})
        assert isinstance(opened, Opened)
        assert opened.count == 1
        assert opened.next_op == 2


ENDLESS_STOP = """
import asyncio, sys
from tellback_server.process import stop_on_signals
class App:
    def request_stop(self, reason): sys.stdout.write(reason + "\\n"); sys.stdout.flush()
async def main():
    stop_on_signals(App())
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_second_signal_ends_at_once_with_130() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS_STOP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "SIGTERM\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(START_TIMEOUT_S) == 130


def test_a_server_without_stdout_and_stderr_serves(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "serve", "--data", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]) as process:
        for _ in range(START_TIMEOUT_S * 20):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        process.terminate()
        assert process.wait(START_TIMEOUT_S) == 0


def test_a_disk_that_takes_nothing_ends_the_start_with_70(tmp_path: Path) -> None:
    command = [*COMMAND, "serve", "--data", str(tmp_path), "--port", "0"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *command], capture_output=True, text=True, timeout=START_TIMEOUT_S
    )
    assert (done.returncode, done.stdout) == (70, "")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_soft_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    command = [*COMMAND, "serve", "--data", str(tmp_path), "--port", "0", "--connections-max", "300"]
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.terminate()
    assert re.search(r"Max open files +428 ", limits)


def test_a_second_server_on_the_same_folder_ends_with_73(tmp_path: Path, server: Callable[..., Server]) -> None:
    server("serve", "--data", tmp_path, "--port", 0).started()
    code, out, errors = server("serve", "--data", tmp_path, "--port", 0).ended()
    assert (code, out) == (73, "")
    assert "in use by another process" in errors
    assert "Traceback" not in errors


def test_a_taken_port_is_one_sentence(tmp_path: Path, server: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, errors = server("serve", "--data", tmp_path, "--port", taken.getsockname()[1]).ended()
    assert (code, out) == (78, "")
    assert "Choose another --port" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_early_leaves_no_folder(tmp_path: Path, server: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, _ = server("serve", "--data", tmp_path / "new", "--port", taken.getsockname()[1]).ended()
    assert (code, list(tmp_path.iterdir())) == (78, [])


def test_a_second_server_on_the_same_folder_and_port_is_told_of_the_folder(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    first = server("serve", "--data", tmp_path, "--port", 0).started()
    port = first.url.split(":")[2].split("/")[0]
    code, _, errors = server("serve", "--data", tmp_path, "--port", port).ended()
    assert (code, "in use by another process" in errors) == (73, True)


def test_a_mistyped_path_is_refused_and_nothing_is_made(tmp_path: Path, server: Callable[..., Server]) -> None:
    """Only the last folder of the path is made; `--create` means the others, too."""
    path = tmp_path / "SilyTavern" / "data"
    for command in ("serve", "demo"):
        code, out, errors = server(command, "--data", path, "--port", 0).ended()
        assert (code, out) == (78, "")
        assert f"{path.parent} does not exist" in errors
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []
    result = run("doctor", path, "--json")
    assert (result.exit_code, "the server would refuse it" in result.stdout) == (1, True)
    assert server("serve", "--data", tmp_path / "new", "--port", 0).started().stop()[0] == 0
    assert server("serve", "--data", path, "--create", "--port", 0).started().stop()[0] == 0
    assert path.is_dir()


def test_data_that_is_a_file_is_one_sentence(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "file").write_text("x")
    code, out, errors = server("serve", "--data", tmp_path / "file", "--port", 0).ended()
    assert (code, out, "is not a directory" in errors, "Traceback" in errors) == (78, "", True, False)


def test_a_damaged_log_ends_with_78(tmp_path: Path, server: Callable[..., Server]) -> None:
    server("serve", "--data", tmp_path, "--port", 0).started().stop()
    segments = sorted((tmp_path / ".tellback" / "log").glob("*.log"))
    segments[-1].write_bytes(b"\xff" * 4096)
    code, out, errors = server("serve", "--data", tmp_path, "--port", 0).ended()
    assert (code, out) == (78, "")
    assert "the log is damaged" in errors
    assert "Traceback" not in errors


def test_two_layouts_at_once_end_with_78(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "chats" / "Ann").mkdir(parents=True)
    (tmp_path / "default-user" / "chats" / "Ann").mkdir(parents=True)
    code, _, errors = server("serve", "--data", tmp_path, "--port", 0).ended()
    assert code == 78
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "x"], "--port: 'x' is not a whole number."),
        (["--host", "0.0.0.0", "--port", "0"], "no users are configured"),
        (["--auth-file", "/nowhere/users.toml", "--port", "0"], "the file does not exist"),
        (["--host", "no-such-host.invalid", "--auth-file", "AUTH", "--port", "0"], "cannot find the address"),
    ],
)
def test_a_bad_setting_ends_with_78(
    tmp_path: Path, server: Callable[..., Server], arguments: list[str], sentence: str
) -> None:
    (tmp_path / "users.json").write_text('{"tokens": []}')
    arguments = [str(tmp_path / "users.json") if word == "AUTH" else word for word in arguments]
    code, out, errors = server("serve", "--data", tmp_path, *arguments).ended()
    assert (code, out) == (78, "")
    assert sentence in errors
    assert "Traceback" not in errors


def test_running_without_syncs_is_announced_loudly(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0, TELLBACK_UNSAFE_NO_SYNC="1").started()
    assert "unsafe-no-sync" in one.stop()[2]


def test_a_misspelt_variable_is_told(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0, TELLBACK_PROT="1").started()
    assert "TELLBACK_PROT" in one.stop()[2]


def test_metrics_are_served(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0).started()
    with urllib.request.urlopen(one.url.replace("ws://", "http://").replace("/ws", "/metrics")) as answer:
        text = answer.read().decode()
    assert "tellback_commits_total 0.0" in text
    assert 'tellback_build_info{' in text


async def test_a_token_opens_the_door_and_leaves_no_trace(tmp_path: Path, server: Callable[..., Server]) -> None:
    users = tmp_path / "users.toml"
    made = run("token", "new", "alice", "--auth-file", users)
    token = made.stdout.strip()
    one = server("serve", "--data", tmp_path / "d", "--port", 0, "--auth-file", users, "--log-level", "debug").started()
    async with tab(one.url, token) as client:
        await append(client, "character:Ann/One", "hers")
    async with connect(one.url) as refused:
        hello = {"type": "hello", "protocol": 1, "session": "t" * 20, "token": token + "-canary"}
        await refused.send(orjson.dumps(hello), text=True)
        assert '"unauthenticated"' in str(await refused.recv())
        await refused.wait_closed()
        assert refused.close_code == 4502
    code, out, errors = await asyncio.to_thread(one.stop)
    assert code == 0
    assert (tmp_path / "d" / "alice" / "chats" / "Ann" / "One.jsonl").exists()
    everything = out + errors + "".join(
        path.read_bytes().decode("latin-1") for path in (tmp_path / "d").rglob("*") if path.is_file()
    )
    assert token not in everything
    assert "canary" not in everything


async def test_the_user_of_a_signed_token_has_chats(tmp_path: Path, server: Callable[..., Server]) -> None:
    (tmp_path / "key").write_text("k" * 64)
    token = jwt.encode({"sub": "carol", "exp": Clock().now_ms() // 1000 + 60}, "k" * 64)
    one = server("serve", "--data", tmp_path / "d", "--port", 0, "--jwt-key-file", tmp_path / "key").started()
    async with tab(one.url, token) as client:
        await append(client, "character:Ann/One", "hers")
    await asyncio.to_thread(one.stop)
    assert (tmp_path / "d" / "carol" / "chats" / "Ann" / "One.jsonl").exists()


async def test_a_user_who_gets_a_token_later_needs_no_restart(tmp_path: Path, server: Callable[..., Server]) -> None:
    users = tmp_path / "users.toml"
    run("token", "new", "alice", "--auth-file", users)
    one = server("serve", "--data", tmp_path / "d", "--port", 0, "--auth-file", users).started()
    token = run("token", "new", "bob", "--auth-file", users).stdout.strip()
    await asyncio.sleep(RELOAD_INTERVAL_S)
    async with tab(one.url, token) as client:
        await append(client, "character:Ann/One", "his")


async def test_a_revoked_token_closes_its_connections(tmp_path: Path, server: Callable[..., Server]) -> None:
    users = tmp_path / "users.toml"
    token = run("token", "new", "alice", "--auth-file", users).stdout.strip()
    flags = ["--port", 0, "--auth-file", users, "--heartbeat-ms", 100]
    one = server("serve", "--data", tmp_path / "d", *flags).started()
    async with tab(one.url, token) as client:
        users.write_text("# Nobody.\n")
        async with asyncio.timeout(START_TIMEOUT_S):
            await client.socket.wait_closed()
        assert client.socket.close_code == 4502


# -- demo and tail ---------------------------------------------------------------------------------------------------


async def test_the_demo_runs_and_its_chat_can_be_watched(server: Callable[..., Server]) -> None:
    one = server("demo", "--port", 0).started()
    news: list[News] = []

    async def watch() -> None:
        async for line in tail_chat(one.url, LIVE_CHAT, None, 2):
            news.append(line)
            if line.what == "opened":
                async with tab(one.url) as client:
                    await append(client, LIVE_CHAT, "Is that\nan owl?\x1b[2J")
            if line.what == "new":
                return

    async with asyncio.timeout(START_TIMEOUT_S):
        await watch()
    assert [line.what for line in news] == ["connected", "opened", "message", "message", "new"]
    assert news[1].text.startswith("3 messages")
    assert news[-1] == News("new", "Is that\nan owl?\\x1b[2J", "You")
    code, out, errors = await asyncio.to_thread(one.stop, signal.SIGINT)
    assert (code, out) == (0, "")
    assert "Three things to try" in errors
    folder = re.search(r"Chats: (\S+)", errors)
    assert folder is not None
    assert Fs().stat(folder[1]) is None


async def test_the_guide_of_the_demo_is_true(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("demo", "--data", tmp_path / "kept", "--port", 0).started()
    guide = ""
    assert one.process.stderr is not None
    while "Stop with" not in guide:
        guide += one.process.stderr.readline()
    frames = [line for line in guide.splitlines() if line.startswith("{")]
    async with connect(one.url) as client:
        for frame in frames:
            await client.send(frame)
        answers = [decode_server(str(await client.recv()).encode()) for _ in frames]
    assert {type(answer) for answer in answers} == {Welcome, Opened, Ack}
    file = tmp_path / "kept/default-user/chats/Odile/Lost property.jsonl"
    promised = re.search(r"the folder has it within (\d+) s:", guide)
    assert promised is not None
    began_s = time.monotonic()
    while "Hello!" not in file.read_text():
        assert time.monotonic() - began_s < 2 * START_TIMEOUT_S
        await asyncio.sleep(0.05)
    # A slow machine may take longer; a guide that is off by seconds on purpose is found.
    assert int(promised[1]) == Settings.model_fields["checkpoint_interval_s"].default
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "has it within five seconds" in readme

    # The same lines again are a resend; with the next number they are a message of their own, as the guide says.
    async with connect(one.url) as client:
        for frame in [*frames, frames[-1].replace('"op":1', '"op":2')]:
            await client.send(frame)
        again = [decode_server(str(await client.recv()).encode()) for _ in range(4)]
    assert [answer.duplicate is True for answer in again if isinstance(answer, Ack)] == [True, False]
    await asyncio.to_thread(one.stop)
    assert file.read_text().count("Hello!") == 2


def test_each_run_of_the_demo_has_a_session_of_its_own(tmp_path: Path, server: Callable[..., Server]) -> None:
    """The lines that one copies work in a kept folder, too."""
    sessions = []
    for _run in range(2):
        one = server("demo", "--data", tmp_path / "kept", "--port", 0).started()
        sessions.append(re.search(r'"session":"([^"]+)"', one.stop()[2]))
    assert None not in sessions
    assert sessions[0][1] != sessions[1][1]  # type: ignore[index]


def test_the_program_in_the_readme_runs(tmp_path: Path, server: Callable[..., Server]) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    one = server("demo", "--data", tmp_path / "kept", "--port", 0).started()
    program = found[1].replace("ws://127.0.0.1:8765/ws", one.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("Odile: One glove, left.")
    one.stop()
    assert "Is that an owl?" in (tmp_path / "kept/default-user/chats/Odile/Lost property.jsonl").read_text()


def test_the_demo_never_touches_what_is_there(tmp_path: Path) -> None:
    assert not has_chats(Fs(), str(tmp_path))
    write_demo(Fs(), str(tmp_path))
    assert has_chats(Fs(), str(tmp_path))
    root = tmp_path / "default-user"
    assert sorted(path.name for path in root.iterdir()) == ["characters", "chats", "group chats", "groups"]
    for chat in [*root.glob("chats/*/*.jsonl"), *root.glob("group chats/*.jsonl")]:
        lines = [json.loads(line) for line in chat.read_text().split("\n")]
        assert "chat_metadata" in lines[0]
        assert all(line["mes"] for line in lines[1:])
    card = (root / "characters" / "Quill.png").read_bytes()
    assert card.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"tEXtchara\0" in card
    (tmp_path / "link").symlink_to("/etc")
    remove_folder(Fs(), str(tmp_path))
    assert not tmp_path.exists()
    assert Path("/etc").exists()
    tmp_path.mkdir()


async def test_tail_tells_why_the_server_refuses(tmp_path: Path, server: Callable[..., Server]) -> None:
    one = server("serve", "--data", tmp_path, "--port", 0).started()
    result = await asyncio.to_thread(run, "tail", "character:Nobody/Nothing", "--url", one.url)
    assert result.exit_code == 1
    assert "not-found: There is no such chat." in result.stderr
    result = await asyncio.to_thread(run, "tail", "character:A/B", "--url", one.url.replace("/ws", "/other"))
    assert result.exit_code == 1
    assert "404" in result.stderr


@pytest.mark.parametrize("name", ["nonsense", "character:", "character:A", "id:x", "preset:x/y", ""])
def test_tail_refuses_what_names_no_chat_without_asking_anybody(name: str) -> None:
    result = run("tail", name, "--url", "ws://127.0.0.1:1/ws")
    assert result.exit_code == 1
    assert "names no chat" in result.stderr
    assert "connect" not in result.stderr


def test_tail_without_a_server_says_so_once_and_how_to_start_one() -> None:
    result = run("tail", "character:A/B", "--url", "ws://127.0.0.1:1/ws")
    assert (result.exit_code, result.stdout) == (69, "")
    assert "cannot connect to ws://127.0.0.1:1/ws" in result.stderr
    assert "tellback serve" in result.stderr


async def test_tail_waits_for_a_server_when_asked_to_and_for_one_that_it_knew(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"ws://127.0.0.1:{port}/ws"
    news = tail_chat(url, LIVE_CHAT, None, 0, wait=True)
    assert (await anext(news)).what == "lost"
    one = await asyncio.to_thread(lambda: server("demo", "--data", tmp_path / "kept", "--port", port).started())
    async with asyncio.timeout(START_TIMEOUT_S):
        while (await anext(news)).what != "opened":
            pass
    await news.aclose()
    news = tail_chat(one.url, LIVE_CHAT, None, 0)
    async with asyncio.timeout(START_TIMEOUT_S):
        assert [(await anext(news)).what for _ in range(2)] == ["connected", "opened"]
        await asyncio.to_thread(one.stop)
        assert [(await anext(news)).what for _ in range(2)] == ["lost", "lost"]
    await news.aclose()


def test_tail_needs_the_url_of_a_websocket() -> None:
    result = run("tail", "character:A/B", "--url", "http://127.0.0.1/ws")
    assert (result.exit_code, "--url http://127.0.0.1/ws" in result.stderr) == (1, True)


VERSION = Version(1, 2, "00000000-0000-4000-8000-000000000000")


def raw(value: object) -> object:
    import msgspec

    return msgspec.Raw(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("effect", "news"),
    [
        (AppendEffect([raw({"id": "a", "role": "user", "content": "hi"})]), [News("new", "hi", "user")]),  # type: ignore[list-item]
        (AppendEffect([raw({"id": "a", "content": [1]})]), [News("new", "[1]")]),  # type: ignore[list-item]
        (PatchEffect("a\x1b", raw([{"op": "remove", "path": "/x"}])), None),  # type: ignore[arg-type]
        (DeleteEffect(["a", "b"]), [News("deleted", "a, b")]),
        (MetadataEffect(raw([])), [News("metadata", "[]")]),  # type: ignore[arg-type]
        (StateEffect("memory", VERSION, None, deleted=True), [News("state", "memory deleted")]),
    ],
)
def test_tail_shows_an_effect_as_a_line(effect: Effect, news: list[News] | None) -> None:
    lines = list(news_of(effect))
    assert all(line.text.replace("\n", "").isprintable() for line in lines)
    if news is not None:
        assert lines == news


# -- token -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["users.toml", "users.json"])
def test_a_new_token_is_shown_once_and_stored_as_a_hash(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    first = run("token", "new", "alice", "--auth-file", path, "--label", 'her "phone"', "--expires", "30d")
    second = run("token", "new", "佐藤", "--auth-file", path)
    assert (first.exit_code, second.exit_code) == (0, 0)
    tokens = TokenFile(Fs(), Clock(), str(path))
    assert tokens.authenticate(first.stdout.strip()).user == "alice"
    assert tokens.authenticate(second.stdout.strip()).user == "佐藤"
    left_ms = (tokens.authenticate(first.stdout.strip()).expires_ms or 0) - Clock().now_ms()
    assert 29 * 86_400_000 < left_ms <= 30 * 86_400_000
    text = path.read_text()
    assert first.stdout.strip() not in text
    assert token_digest(first.stdout.strip()) in text
    assert path.stat().st_mode & 0o077 == 0


def test_a_new_token_leaves_comments_alone(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text("# Ours.\n# No line end after this")
    assert run("token", "new", "alice", "--auth-file", path).exit_code == 0
    assert path.read_text().startswith("# Ours.\n# No line end after this\n\n[[tokens]]\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["../x"], "cannot be a user"),
        (["alice", "--expires", "soon"], "is no span of time"),
        (["alice", "--broken"], "this is no token file"),
    ],
)
def test_a_bad_request_for_a_token_changes_nothing(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    path = tmp_path / "users.toml"
    content = "[[tokens]\n" if "--broken" in arguments else "# kept\n"
    path.write_text(content)
    result = run("token", "new", *[word for word in arguments if word != "--broken"], "--auth-file", path)
    assert result.exit_code == 78
    assert sentence in result.stderr
    assert path.read_text() == content


# -- log -------------------------------------------------------------------------------------------------------------


async def written_log(data: Path) -> Path:
    log = Log.open(Fs(), str(data / ".tellback" / "log"), Clock(), segment_bytes=1 << 16)
    log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    log.append(1, "alice/chat", 1, b"secret text")
    await log.flush()
    log.close()
    return data


async def test_log_verify_and_dump_read_a_data_folder(tmp_path: Path) -> None:
    data = await written_log(tmp_path)
    shown = run("log", "verify", data)
    assert (shown.exit_code, "The log is whole." in shown.stdout) == (0, True)
    report = json.loads(run("log", "verify", data / ".tellback" / "log", "--json").stdout)
    assert (report["records"], report["owners"]) == (1, 1)
    dumped = run("log", "dump", data)
    entries = [json.loads(line) for line in dumped.stdout.splitlines()]
    assert [entry["owner"] for entry in entries if entry["what"] == "record"] == ["alice/chat"]
    assert "secret text" not in dumped.stdout


async def test_a_damaged_log_is_told_by_verify_dump_and_doctor(tmp_path: Path) -> None:
    data = await written_log(tmp_path)
    for segment in (data / ".tellback" / "log").glob("*.log"):
        segment.write_bytes(b"\xff" * 4096)
    shown = run("log", "verify", data)
    assert (shown.exit_code, "The log is damaged." in shown.stdout) == (1, True)
    assert run("log", "dump", data).exit_code == 1
    assert run("doctor", data).exit_code == 1


def test_log_commands_need_a_folder(tmp_path: Path) -> None:
    result = run("log", "verify", tmp_path / "nowhere")
    assert (result.exit_code, "there is no such folder" in result.stderr) == (78, True)


# -- doctor ----------------------------------------------------------------------------------------------------------


def states(directory: Path, fs: Fs | None = None, **arguments: object) -> dict[str, str]:
    options: dict[str, object] = {"host": "127.0.0.1", "has_users": False, **arguments}
    checks = check_all(fs or Fs(), Clock(), str(directory), **options)  # type: ignore[arg-type]
    return {check.name: check.state for check in checks}


def test_doctor_finds_an_ordinary_folder_fit_and_leaves_nothing_behind(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    result = run("doctor", tmp_path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["fit"] else 1)
    checks = {check["name"]: check for check in report["checks"]}
    assert set(checks) == {
        "layout", "permissions", "file system", "space", "lock", "sync", "address", "open files",
    }
    assert checks["permissions"]["state"] == "good"
    assert checks["sync"]["values"]["p50_s"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "doctor" in run("doctor", tmp_path).stdout


def test_doctor_tells_what_is_wrong(tmp_path: Path) -> None:
    assert states(tmp_path / "nowhere")["folder"] == "wrong"
    tmp_path.chmod(0o755)
    assert states(tmp_path)["permissions"] == "warning"
    assert states(tmp_path, host="0.0.0.0")["address"] == "wrong"
    assert states(tmp_path, host="0.0.0.0", has_users=True)["address"] == "good"
    (tmp_path / "chats").mkdir()
    assert states(tmp_path)["layout"] == "good"
    (tmp_path / "default-user" / "chats").mkdir(parents=True)
    assert states(tmp_path)["layout"] == "wrong"
    assert run("doctor", tmp_path).exit_code == 1


READ_ONLY = "30 22 0:26 / / ro,relatime - ext4 /dev/sda1 rw\n"


class _ReadOnlyFs(Fs):
    """A folder on a mount that is read-only."""

    def read(self, path: str) -> bytes:
        return READ_ONLY.encode() if path == "/proc/self/mountinfo" else super().read(path)


@pytest.mark.parametrize(("missing", "fs", "found", "advice"), [
    (os.W_OK, _ReadOnlyFs(), "is mounted read-only", "Mount it writable"),
    (os.W_OK, Fs(), "may not write here: mode 0500", "chmod u+rwx"),
    (os.R_OK | os.W_OK, _ReadOnlyFs(), "may not read or write here", "chmod u+rwx"),
])
def test_doctor_says_why_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int, fs: Fs, found: str, advice: str
) -> None:
    """Root may write everywhere, and these tests may run as root: what the system says of a right is put in place."""
    tmp_path.chmod(0o500)
    monkeypatch.setattr(os, "access", lambda _path, right: not right & missing)
    [check] = [c for c in check_all(fs, Clock(), str(tmp_path), host="::1", has_users=False) if c.name == "permissions"]
    tmp_path.chmod(0o700)
    assert (check.state, found in check.found, advice in check.advice) == ("wrong", True, True), check


def test_doctor_sees_a_running_server(tmp_path: Path) -> None:
    lock = Fs().lock_directory(str(tmp_path))
    try:
        [check] = [c for c in check_all(Fs(), Clock(), str(tmp_path), host="::1", has_users=False) if c.name == "lock"]
        assert "a server is running" in check.found
    finally:
        lock.release()


class _NoSyncFile(File):
    __slots__ = ()

    def fdatasync(self) -> None:
        return


class _NoSyncFs(Fs):
    """A disk that lies."""

    def _file(self, path: str, descriptor: int) -> File:
        return _NoSyncFile(path, descriptor)


class _FastClock(Clock):
    """Time on which a write takes a microsecond."""

    __slots__ = ("ticks",)

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0

    def monotonic_s(self) -> float:
        self.ticks += 1
        return self.ticks * SYNC_SUSPICIOUS_S / 20


def test_doctor_does_not_believe_a_disk_that_is_too_fast(tmp_path: Path) -> None:
    checks = check_all(_NoSyncFs(), _FastClock(), str(tmp_path), host="::1", has_users=False)
    [check] = [check for check in checks if check.name == "sync"]
    assert (check.state, "may not sync at all" in check.advice) == ("warning", True)


MOUNTS = r"""22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:26 / /mnt rw - tmpfs tmpfs rw
31 30 8:2 / /mnt/my\040disk rw,noatime - xfs /dev/sdb1 rw,nobarrier
nonsense
32 22 0:40 / /over rw - overlay overlay rw,lowerdir=/a,volatile
"""


@pytest.mark.parametrize(
    ("path", "point", "kind", "option"),
    [
        ("/home/x", "/", "ext4", "rw"),
        ("/mntx", "/", "ext4", "relatime"),
        ("/mnt/x", "/mnt", "tmpfs", "rw"),
        ("/mnt/my disk/chats", "/mnt/my disk", "xfs", "nobarrier"),
        ("/over", "/over", "overlay", "volatile"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount(path: str, point: str, kind: str, option: str) -> None:
    mount = mount_of(MOUNTS, path)
    assert mount is not None
    assert (mount.point, mount.kind) == (point, kind)
    assert option in mount.options


# -- the rest --------------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"tellback [0-9.]+\S*\n", run("--version").stdout)


@pytest.mark.parametrize("command", ["", *COMMANDS, "log verify", "token new"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_a_command_does_not_wait_for_what_the_others_need() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from tellback_server.__main__ import app;"
        "assert CliRunner().invoke(app, ['token', '--help']).exit_code == 0;"
        "print(*(name for name in sys.modules if name.startswith('tellback_server.commands.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"tellback_server.commands.token"} <= set(done.stdout.split()) <= {
        "tellback_server.commands.token", "tellback_server.commands.exits",
    }
