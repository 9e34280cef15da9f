"""`tellback import` and `tellback export` as people run them: exit codes, sentences, JSON, servers, kills."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.support import warm
from tests.support.importing import USER, contents, write_files
from tests.support.real_data import COUNTS, copy_real_data, real_user, tree
from tests.support.server import Process, TabClient
from tests.support.waiting import until


async def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    return await asyncio.to_thread(lambda: warm.run(*arguments, COLUMNS="200"))


async def test_a_real_folder_from_import_to_served_chats_and_back(tmp_path: Path) -> None:
    """[IE1] [IE2] [IE9] Looked at in place, tried dry, imported, served, written to, exported by server and folder."""
    source, data = real_user(), tmp_path / "data"
    before = tree(source)
    code, out, _ = await run("import", "sillytavern", source.parent)
    assert code == 0
    assert f"tellback serve --data {source.parent.resolve()}" in out
    code, out, _ = await run("import", "sillytavern", source.parent, "--data", data, "--dry-run", "--json")
    dry = json.loads(out)
    assert (code, dry["actions"], data.exists()) == (0, {"imported": 23}, False)
    code, out, _ = await run("import", "sillytavern", source.parent, "--data", data, "--json")
    report = json.loads(out)
    assert (code, report["done"], report["messages"]) == (0, True, sum(COUNTS.values()))
    told = [{key: value for key, value in one.items() if key != "kept"} for one in report["items"]]
    assert told == dry["items"]
    assert tree(source) == before
    server = await Process(data).start()
    try:
        code, out, errors = await run("import", "sillytavern", source, "--data", data)
        assert (code, out) == (73, "")
        assert "Stop it first" in errors
        code, out, errors = await run("export", "openai", tmp_path / "no", "--data", data)
        assert (code, out) == (73, "")
        assert "--url" in errors
        tab = await TabClient.join(server.url)
        winter = "character:Kapitän Jonas Thale/The lighthouse winter"
        await tab.open(winter)
        await tab.append(winter, "and one more")
        code, out, _ = await run("export", "luker", tmp_path / "served", "--url", server.url, "--json")
        assert (code, json.loads(out)["messages"]) == (0, sum(COUNTS.values()) + 1)
    finally:
        await server.kill()
    # The last message is in the log only: the export from the folder has it all the same.
    code, out, _ = await run("export", "sillytavern", tmp_path / "filed", "--data", data)
    assert code == 0
    served, filed, were = contents(tmp_path / "served"), contents(tmp_path / "filed"), contents(source)
    path = "chats/Kapitän Jonas Thale/The lighthouse winter.jsonl"
    assert json.loads(served[path].split(b"\n")[-1])["mes"] == "and one more"
    assert json.loads(filed[path].rstrip(b"\n").split(b"\n")[-1])["mes"] == "and one more"
    assert filed[path].startswith(were[path])
    changed = {path, "group chats/2024-10-12@19h00m00s.jsonl"}
    assert {name for name in served if "chat_sync" not in name} == {
        name for name in filed if not name.startswith("backups") and "chat_sync" not in name
    }, "cards, presets and groups come from a running server, too"
    for name, found in served.items():
        assert name in changed or found == were[name]
    assert {name: found for name, found in filed.items() if name != path} == {
        name: found for name, found in were.items() if name != path and not name.startswith("backups")
    }
    code, out, _ = await run("export", "text", "-", "--data", data, "--chat", winter)
    assert code == 0
    assert out.endswith("and one more\n")
    code, out, errors = await run("export", "text", "-", "--data", data, "--chat", "character:Pip/None")
    assert (code, out) == (1, "")
    assert "no such chat" in errors


async def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    """[IE1] Each with its exit code; nothing is made."""
    source = copy_real_data(tmp_path) / USER
    write_files(tmp_path / "two", {"a/chats/x": b"", "b/chats/x": b""})
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    cases: list[tuple[int, str, tuple[Any, ...]]] = [
        (78, "lie in each other", ("import", "luker", source, "--data", source / "in" / "it")),
        (78, "lie in each other", ("import", "luker", source, "--data", source.parent)),
        (78, "does not exist", ("import", "luker", tmp_path / "none", "--data", tmp_path / "d")),
        (78, "Only the last folder", ("import", "luker", source, "--data", tmp_path / "x" / "y")),
        (78, "several users", ("import", "luker", tmp_path / "two", "--data", tmp_path / "d")),
        (78, "--from-user", ("import", "luker", tmp_path / "two", "--from-user", "c", "--data", tmp_path / "d")),
        (78, "neither chats/", ("import", "luker", tmp_path / "empty", "--data", tmp_path / "d")),
        (78, "no folder of CardShark", ("import", "cardshark", tmp_path / "empty", "--data", tmp_path / "d")),
        (78, ".jsonl", ("import", "openai", tmp_path / "empty", "--data", tmp_path / "d")),
        (78, "--data is needed", ("import", "text", source)),
        (78, "lie in each other", ("export", "luker", source / "out", "--data", source.parent)),
        (78, "--url", ("export", "luker", tmp_path / "d")),
        (78, "--chat", ("export", "luker", "-", "--data", source.parent)),
        (69, "Is it running?", ("export", "luker", tmp_path / "d", "--url", "ws://127.0.0.1:9/ws")),
    ]
    for code, part, arguments in cases:
        got, out, errors = await run(*arguments)
        assert (got, out) == (code, ""), (arguments, errors)
        assert part in errors, (arguments, errors)
        assert errors.count("\n") == 1, errors
    assert tree(tmp_path) == before


async def test_what_only_the_log_knows_is_neither_covered_nor_left_behind(tmp_path: Path) -> None:
    """[IE5] [IE9] A chat without a file yet, and states of a character, when the server was killed."""
    data = tmp_path / "data"
    write_files(data, {f"{USER}/characters/Ann.png": b"x", f"{USER}/chats/Ann/old.jsonl": b'{"chat_metadata":{}}'})
    server = await Process(data, "--checkpoint-interval", "300", "--checkpoint-debounce", "300").start()
    tab = await TabClient.join(server.url)
    await tab.ask("open", chat="character:Ann/new", create=True, since=None)
    await tab.append("character:Ann/new", "mine")
    await tab.ask("state-update", owner={"character": "Ann"}, op=1, namespace="mood", base=None, set={"v": 1})
    await server.kill()
    new = data / USER / "chats/Ann/new.jsonl"
    assert not new.exists()
    source = write_files(tmp_path / "s", {"chats/Ann/new.jsonl": b'{"chat_metadata":{}}\n{"mes":"theirs"}'})
    code, out, _ = await run("import", "luker", source, "--data", data, "--json")
    assert code == 0
    assert [one["target"] for one in json.loads(out)["items"]] == ["character:Ann/new (imported)"]
    assert not new.exists()
    code, out, _ = await run("export", "luker", tmp_path / "out", "--data", data)
    assert code == 0, out
    found = contents(tmp_path / "out")
    assert json.loads(found["chats/Ann/new.jsonl"].rstrip(b"\n").split(b"\n")[-1])["mes"] == "mine"
    assert json.loads(found["characters/Ann.state.mood.json"]) == {"v": 1}
    assert found["chats/Ann/new (imported).jsonl"].endswith(b'{"mes":"theirs"}')


async def test_a_folder_that_belongs_to_a_store_says_which_one(tmp_path: Path) -> None:
    """[IE10] Files that are put there would never be shown: what comes in goes into the store, what goes out is there.
    """
    server = await Process(tmp_path / "data", "--store", f"sqlite:///{tmp_path}/chats.db").start()
    tab = await TabClient.join(server.url)
    await tab.ask("open", chat="character:Ann/new", create=True, since=None)
    await tab.append("character:Ann/new", "mine")
    code, out, _ = await run("export", "openai", "-", "--url", server.url, "--chat", "character:Ann/new")
    assert (code, json.loads(out)["content"]) == (0, "mine")
    assert await server.stop() == 0
    source = write_files(tmp_path / "s", {"chats/Ann/a.jsonl": b"{}"})
    before = tree(tmp_path)
    code, out, errors = await run("import", "luker", source, "--data", tmp_path / "data", "--dry-run", "--json")
    assert (code, json.loads(out)["actions"]) == (0, {"imported": 1}), errors
    found = tree(tmp_path)
    assert {name: one for name, one in found.items() if "chats.db" not in name and name in before} == {
        name: one for name, one in before.items() if "chats.db" not in name
    }
    code, out, errors = await run("import", "luker", source, "--data", tmp_path / "data", "--json")
    assert (code, json.loads(out)["actions"]) == (0, {"imported": 1}), errors
    code, out, errors = await run("export", "openai", tmp_path / "out", "--data", tmp_path / "data", "--json")
    assert (code, json.loads(out)["actions"]) == (0, {"written": 2}), errors
    for arguments in (("import", "luker", source), ("export", "text", "o")):
        code, out, errors = await run(*arguments, "--data", tmp_path / "data", "--store", "sqlite:///another.db")
        assert (code, out, "are in sqlite:///" in errors) == (78, "", True)


async def test_a_report_names_what_a_person_should_look_at(tmp_path: Path) -> None:
    """[IE3] Exit code 1, file, line, what was done; control characters of names do not reach the terminal."""
    source = write_files(tmp_path / "s", {
        "chats/A/bad\x1b[31m.jsonl": b'{"chat_metadata":{}}\n{torn\n{"mes":"x"}', "chats/A/well.jsonl": b"{}",
    })
    code, out, _ = await run("import", "sillytavern", source, "--data", tmp_path / "d")
    assert code == 1
    assert "\x1b" not in out
    assert "line 2" in out
    assert "read-only until `tellback repair`" in out
    assert "2 imported" in out
    code, out, _ = await run("check", tmp_path / "d")
    assert code == 1
    code, out, _ = await run("import", "sillytavern", source, "--data", tmp_path / "d")
    assert (code, out.split(";")[0]) == (0, "2 here already")
    (tmp_path / "d" / USER / "chats" / "A" / "well.jsonl").unlink()
    code, out, _ = await run("import", "sillytavern", source, "--data", tmp_path / "d")
    assert (code, "1 of these deleted or renamed here since" in out) == (0, True)
    code, out, _ = await run("import", "sillytavern", source, "--data", tmp_path / "d", "--again")
    assert (code, "1 imported; 1 here already" in out) == (1, True)
    (tmp_path / "d" / USER / "chats" / "A" / "link.jsonl").symlink_to("well.jsonl")
    code, out, _ = await run("export", "sillytavern", tmp_path / "out", "--data", tmp_path / "d")
    assert code == 1
    assert "source-link" in out
    assert "line-not-json" in out
    assert len(contents(tmp_path / "out")) == 2


CHATS_TO_KILL = 600
"""Enough that the kill comes before the end, however the two processes are scheduled."""


async def test_an_import_that_is_killed_in_the_middle_is_whole_after_the_next_run(tmp_path: Path) -> None:
    """[IE7] SIGKILL and SIGINT to the real command; the lock is free at once."""
    source = write_files(tmp_path / "s", {
        f"chats/A/n{number}.jsonl": b'{"chat_metadata":{}}\n{"mes":"%d"}' % number for number in range(CHATS_TO_KILL)
    })
    for number in (signal.SIGKILL, signal.SIGINT):
        data = tmp_path / number.name
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tellback_server", "import", "luker", str(source), "--data", str(data),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        chats = data / USER / "chats"
        await until(lambda chats=chats: chats.exists() and len(list(chats.rglob("*.jsonl"))) >= 20)
        process.send_signal(number)
        await process.communicate()
        there = len(contents(data / USER))
        assert 20 <= there <= CHATS_TO_KILL
        code, out, _ = await run("import", "luker", source, "--data", data, "--json")
        assert code == 0
        assert contents(data / USER) == contents(source)
        assert json.loads(out)["actions"].get("imported", 0) >= max(0, CHATS_TO_KILL - there - 1)
