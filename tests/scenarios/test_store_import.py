"""Chats into a store and out of it again: what a folder was is what comes back, by bytes and by integrity."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_import import run
from tests.scenarios.test_store_server_backup import everything
from tests.support.database_servers import PostgresProcess
from tests.support.importing import contents, write_files
from tests.support.real_data import COUNTS, copy_real_data, real_user, tree
from tests.support.server import Process, TabClient, running
from tests.support.stored import sqlite_url

WINTER = "character:Kapitän Jonas Thale/The lighthouse winter"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "postgresql":
        postgres: PostgresProcess = request.getfixturevalue("postgres")
        return postgres.url(f"t{uuid.uuid4().hex}")
    return sqlite_url(tmp_path_factory.mktemp("store"))


async def told(data: Path, **settings: Any) -> dict[str, Any]:
    """Every chat as a server tells it."""
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        found: dict[str, Any] = (await everything(tab))["chats"]
    return found


async def test_a_real_folder_moves_into_a_store_and_back_to_files(url: str, tmp_path: Path) -> None:
    """[IE10] Equal ids, versions, messages, metadata, states and floor logs in the store; the same bytes afterwards."""
    source, data = real_user(), tmp_path / "data"
    before, was = tree(source), await told(copy_real_data(tmp_path / "served"))
    arguments = "import", "luker", source, "--data", data, "--store", url, "--json"
    code, out, errors = await run(*arguments, "--dry-run")
    dry = json.loads(out)
    assert (code, dry["actions"], data.exists()) == (0, {"imported": 23}, False), errors

    code, out, errors = await run(*arguments)

    report = json.loads(out)
    assert (code, report["messages"]) == (0, sum(COUNTS.values())), errors
    assert report["items"] == dry["items"]
    assert tree(source) == before
    assert not list((data / "default-user").rglob("*.jsonl"))
    # Without its journal the store itself is compared.
    next((data / ".tellback/imports").iterdir()).unlink()
    code, out, _ = await run(*arguments)
    assert (code, json.loads(out)["actions"]) == (0, {"known": 23})
    assert await told(data, store=url) == was

    back = tmp_path / "back"
    code, out, errors = await run("export", "luker", back / "default-user", "--data", data, "--store", url, "--json")
    assert code == 0, errors
    exported = {name: one for name, one in contents(back / "default-user").items() if "chat_sync" not in name}
    found = {name: one for name, one in contents(source).items() if not name.startswith(("backups/", "README"))}
    found = {name: one for name, one in found.items() if "chat_sync" not in name}
    assert set(found) == set(exported)
    assert [name for name, one in found.items() if exported[name] != one] == []
    assert await told(back) == was


async def test_what_was_written_in_a_store_comes_out_of_it_and_goes_into_another(tmp_path: Path) -> None:
    """[IE10] [IE8] After a kill, too: what only the log knows is folded first; active chats are chosen once."""
    source, data, url = real_user(), tmp_path / "data", sqlite_url(tmp_path / "store")
    assert (await run("import", "luker", source, "--data", data, "--store", url))[0] == 0
    server = Process(data, "--checkpoint-interval", "600", "--checkpoint-debounce", "600", "--store", url)
    async with server:
        tab = await TabClient.join(server.url)
        await tab.open(WINTER)
        await tab.append(WINTER, "and one more")
        await tab.write("floor-update", WINTER, namespace="score", base=None, patch=[
            {"op": "add", "path": "/points", "value": 1}
        ])
        code, _out, errors = await run("import", "luker", source, "--data", data, "--store", url)
        assert (code, "Stop it first" in errors) == (73, True)
        was = (await everything(tab))["chats"]
        await server.kill()
    folder, other = tmp_path / "folder", sqlite_url(tmp_path / "other")
    code, _out, errors = await run("export", "luker", folder, "--data", data, "--store", url)
    assert code == 0, errors
    code, _out, errors = await run("import", "luker", folder, "--data", tmp_path / "second", "--store", other)
    assert code == 0, errors
    now = await told(tmp_path / "second", store=other)
    for name, chat in was.items():
        for told_of in (chat, now[name]):
            for state in told_of["states"].values():
                del state["version"]
        assert [now[name][key] for key in ("messages", "states")] == [chat[key] for key in ("messages", "states")]
        assert (now[name]["metadata"] == chat["metadata"], name) == (True, name)
        if name != WINTER:
            assert (now[name]["version"], now[name]["chat_id"]) == (chat["version"], chat["chat_id"])
    files = copy_real_data(tmp_path / "files")
    code, _out, errors = await run("import", "luker", source, "--data", files, "--store", other)
    assert (code, "holds chats as files" in errors) == (78, True)


async def test_a_state_that_changed_in_the_source_arrives_and_none_is_lost(tmp_path: Path) -> None:
    """[IE6] [IE10] The lines are the same, or others; a state that only the store has stays; the old one is kept."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    lines = '{"chat_metadata":{}}\n{"name":"A","mes":"hi"}'
    source = write_files(tmp_path / "source", {
        "chats/Alice/one.jsonl": lines, "chats/Alice/one.luker-state.memory.json": '{"n":1}',
        "chats/Alice/one.luker-state.mood.json": '{"good":true}',
    })
    arguments = "import", "luker", source, "--data", data, "--store", url, "--json"
    assert (await run(*arguments))[0] == 0
    (source / "chats/Alice/one.luker-state.mood.json").unlink()
    for changed in ({"chats/Alice/one.luker-state.memory.json": '{"n":2}'}, {
        "chats/Alice/one.jsonl": lines + '\n{"name":"A","mes":"more"}',
        "chats/Alice/one.luker-state.memory.json": '{"n":3}',
    }):
        write_files(source, changed)
        code, out, errors = await run(*arguments)
        assert (code, json.loads(out)["actions"]) == (0, {"updated": 1}), errors
        chat = (await told(data, store=url))["character:Alice/one"]
        wanted = json.loads(changed["chats/Alice/one.luker-state.memory.json"])
        assert {name: one["data"] for name, one in chat["states"].items()} == {"memory": wanted, "mood": {"good": True}}
        assert json.loads((await run(*arguments))[1])["actions"] == {"known": 1}
    kept = {path.read_text() for path in data.rglob("*.memory.json")}
    assert {'{"n":1}', '{"n":2}'} <= kept


async def test_a_state_that_is_missing_beside_a_chat_that_is_there_comes_in(tmp_path: Path) -> None:
    """[IE5] [IE10] As in a folder: also without a journal; another one of its name is left as it is here, and told."""
    data, folder, url = tmp_path / "data", tmp_path / "folder", sqlite_url(tmp_path / "store")
    lines = '{"chat_metadata":{}}\n{"id":"m1","name":"A","mes":"hi"}'
    first = write_files(tmp_path / "first", {
        "chats/Alice/one.jsonl": lines, "chats/Alice/one.luker-state.memory.json": '{"n":1}',
        "chats/Alice/one.luker-state.mood.json": '{"good":true}',
    })
    second = write_files(tmp_path / "second", {
        "chats/Alice/one.jsonl": lines, "chats/Alice/one.luker-state.memory.json": '{"n":2}',
        "chats/Alice/one.luker-state.place.json": '{"at":"sea"}',
    })
    reports: list[tuple[int, dict[str, Any]]] = []
    for place in (["--data", data, "--store", url], ["--data", folder]):
        assert (await run("import", "luker", first, *place))[0] == 0
        next((Path(place[1]) / ".tellback/imports").iterdir()).unlink()
        for source in (second, first):
            dry = json.loads((await run("import", "luker", source, *place, "--json", "--again", "--dry-run"))[1])
            code, out, errors = await run("import", "luker", source, *place, "--json", "--again")
            report = json.loads(out)
            assert (report["actions"], report.get("items")) == ({"known": 1}, dry.get("items")), errors
            reports.append((code, report.get("items", [])))
    in_store, in_folder = reports[:2], reports[2:]
    assert in_store == in_folder
    assert [[note["code"] for note in items[0]["notes"]] if items else [] for _code, items in in_store] == [
        ["state-taken"], []
    ]
    served, there = await told(data, store=url), await told(folder)
    assert {name: one["data"] for name, one in served["character:Alice/one"]["states"].items()} == {
        "memory": {"n": 1}, "mood": {"good": True}, "place": {"at": "sea"},
    }
    for one in (served, there):
        for state in one["character:Alice/one"]["states"].values():
            del state["version"]
        del one["character:Alice/one"]["head"], one["character:Alice/one"]["version"]
    assert served == there


async def test_names_that_are_taken_changes_and_damage_in_a_store(tmp_path: Path) -> None:
    """[IE5] [IE6] [IE10] As in a folder: beside it, brought up to date, told and kept."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    lines = '{"chat_metadata":{"a":1},"user_name":"User"}\n{"name":"A","mes":"hi"}\n{"name":"A","mes":"hi"}'
    source = write_files(tmp_path / "source", {
        "chats/Alice/one.jsonl": lines, "chats/Alice/one.luker-state.memory.json": '{"n":1}',
        "chats/Alice/broken.jsonl": f"{lines}\n{{torn",
    })
    arguments = "import", "luker", source, "--data", data, "--store", url, "--json"
    code, out, _ = await run(*arguments)
    report = json.loads(out)
    assert (code, report["actions"]) == (1, {"imported": 2})
    [broken] = [one for one in report["items"] if one["source"] == "chats/Alice/broken.jsonl"]
    [left_out] = [note for note in broken["notes"] if note["code"] == "lines-left-out"]
    kept = left_out["message"].rpartition(" ")[2].rstrip(")")
    assert (data / "default-user" / kept).read_text() == f"{lines}\n{{torn"
    await told(data, store=url)
    # The source went on, and another source has the same name.
    write_files(source, {"chats/Alice/one.jsonl": lines + '\n{"name":"A","mes":"more"}'})
    other = write_files(tmp_path / "third", {"chats/alice/One.jsonl": '{"chat_metadata":{}}\n{"mes":"another"}'})
    code, out, _ = await run(*arguments)
    assert json.loads(out)["actions"] == {"updated": 1, "known": 1}
    code, out, _ = await run("import", "luker", other, "--data", data, "--store", url, "--json")
    assert (json.loads(out)["items"][0]["action"]) == "imported"
    assert json.loads(out)["items"][0]["target"] == "character:alice (imported)/One"
    async with running(data, store=url) as app:
        tab = await TabClient.join(app.urls[0])
        found = (await everything(tab))["chats"]
        assert [one["mes"] for one in found["character:Alice/one"]["messages"]] == ["hi", "hi", "more"]
        assert found["character:Alice/one"]["states"]["memory"]["data"] == {"n": 1}
        await tab.append("character:Alice/one", "written here")
    write_files(source, {"chats/Alice/one.jsonl": lines + '\n{"name":"A","mes":"something else"}'})
    code, out, _ = await run(*arguments)
    notes = {note["code"] for one in json.loads(out)["items"] for note in one["notes"]}
    assert json.loads(out)["actions"] == {"beside": 1, "known": 1}
    assert {"changed-there", "name-taken"} <= notes


async def test_a_kill_at_any_chat_and_the_next_run_finishes_it(tmp_path: Path) -> None:
    """[IE7] [IE10] Each chat once, whole; a check finds nothing amiss in the folder of a server on a store."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "store")
    line = '{"chat_metadata":{},"user_name":"U"}\n{"mes":"hi"}'
    source = write_files(tmp_path / "source", {
        **{f"chats/Alice/{number}.jsonl": line for number in range(4)}, "group chats/g.jsonl": line,
        "groups/1.json": json.dumps({"id": "1", "name": "Friends", "members": [], "chats": ["g"], "chat_id": "g"}),
        **{f"chats/Alice/{number}.luker-state.memory.json": '{"n":1}' for number in range(4)},
    })
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tellback_server", "import", "luker", str(source), "--data", str(data),
        "--store", url, env={**os.environ, "TELLBACK_FAILPOINTS": "import.after_file=kill@2"},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == -9
    code, out, errors = await run("import", "luker", source, "--data", data, "--store", url, "--json")
    assert (code, sum(json.loads(out)["actions"].values())) == (0, 6), errors
    assert json.loads(out)["store"] == url
    found = await told(data, store=url)
    assert sorted(found) == [*(f"character:Alice/{number}" for number in range(4)), "group:g"]
    for name, chat in found.items():
        assert [one["mes"] for one in chat["messages"]] == ["hi"]
        assert name == "group:g" or chat["states"]["memory"]["data"] == {"n": 1}
    code, out, errors = await run("check", data)
    assert code == 0, out + errors


@pytest.mark.parametrize("store", [True, False])
async def test_active_chats_of_cardshark_are_taken_over_once(store: bool, tmp_path: Path) -> None:
    """[IE11] [I12] And told again by an export; who chose another one here since keeps it."""
    data = tmp_path / "data"
    url = sqlite_url(tmp_path / "store")
    options: tuple[str, ...] = ("--store", url) if store else ()
    settings: dict[str, Any] = {"store": url} if store else {}
    header = {"user_name": "User", "character_name": "Alice", "character_id": "Alice-1", "create_date": 1709288100000}
    files: dict[str, str] = {
        f"chats/Alice/chat_Alice_2024030{day}_101500.jsonl": "\n".join(map(json.dumps, [
            {**header, "chat_metadata": {"chat_id": f"Alice_{day}"}}, {"name": "Alice", "mes": f"{day}"},
        ])) for day in (1, 2, 3)
    }
    files["chats/folders.json"] = json.dumps({"Alice-1": "Alice"})
    files["chats/active_chats.json"] = json.dumps({"Alice-1": "Alice_2", "Bob-1": "gone"})
    source = write_files(tmp_path / "shark", files)
    code, out, errors = await run("import", "cardshark", source, "--data", data, *options, "--json")
    assert (code, json.loads(out)["active"]) == (0, ["character:Alice"]), errors
    second, third = (f"character:Alice/chat_Alice_2024030{day}_101500" for day in (2, 3))
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        answer = await tab.ask("active-chat", character="Alice")
        assert answer["chat"] == second, answer
    code, out, errors = await run("export", "cardshark", tmp_path / "out", "--data", data, *options)
    assert code == 0, errors
    assert json.loads((tmp_path / "out/chats/active_chats.json").read_text()) == {"Alice-1": "Alice_2"}
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        answer = await tab.ask("active-chat", character="Alice", chat=third)
        assert answer["type"] != "error", answer
    code, out, _ = await run("import", "cardshark", source, "--data", data, *options, "--json")
    assert json.loads(out).get("active", []) == []
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.ask("active-chat", character="Alice"))["chat"] == third
