"""Which store a data folder belongs to, and what a start refuses."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tellback_server.clock import Clock
from tellback_server.config import Settings
from tellback_server.config_problems import ConfigurationError
from tellback_server.doctor import check_all
from tellback_server.fs import Fs
from tellback_server.storage import choose
from tests.support.server import TabClient, running, texts
from tests.support.stored import sqlite_url
from tests.support.waiting import GUARD_S

CHAT = "character:Alice/First meeting"
OWNER = {"character": "Alice"}


async def started(data: Path, **settings: Any) -> list[str]:
    """What the chat says on a server with these settings."""
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        return texts((await tab.open(CHAT))["messages"])


async def written(data: Path, **settings: Any) -> None:
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        assert (await tab.append(CHAT, "one"))["type"] == "ack"


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if not path.name.startswith("0")}


async def refused(data: Path, **settings: Any) -> str:
    before = names(data)
    with pytest.raises(ConfigurationError) as told:
        await started(data, **settings)
    assert before <= names(data), "nothing was removed"
    return str(told.value)


async def test_a_data_folder_belongs_to_one_store(tmp_path: Path) -> None:
    """[SV8]: neither its folders nor an empty store take the place of its store; the same store elsewhere does."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "one")
    await written(data, store=url)
    sentence = await refused(data)
    assert f"the chats of {data} are in {url}" in sentence
    sentence = await refused(data, store=sqlite_url(tmp_path / "empty"))
    assert f"are in {url}; " in sentence
    assert "holds none" in sentence
    assert await started(data, store=url) == ["one"]
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    assert await started(data, store=sqlite_url(tmp_path / "moved")) == ["one"]


async def test_doctor_knows_the_store_of_a_folder(tmp_path: Path) -> None:
    """[SV8]: it makes no store, and tells of the one that there is."""

    def told(url: str) -> tuple[str, str]:
        checks = check_all(Fs(), Clock(), str(tmp_path / "data"), host="127.0.0.1", has_users=False, store=url)
        (one,) = [check for check in checks if check.name == "store"]
        return one.state, one.found

    url = sqlite_url(tmp_path / "store")
    (tmp_path / "data").mkdir()
    assert told(url)[0] == "good"
    assert not names(tmp_path / "store")
    await written(tmp_path / "data", store=url)
    assert told("files") == ("warning", f"the chats are in {url}, which was not looked at")
    assert told(url) == ("good", f"SQLite {sqlite3.sqlite_version}, owners of 1 users, durable by the store")
    assert told("nosuch:///x")[0] == "wrong"
    assert told(f"{url}?synchronous=off")[0] == "wrong"


async def test_a_store_belongs_to_one_data_folder(tmp_path: Path) -> None:
    """[SV8] [ST10]"""
    url = sqlite_url(tmp_path / "store")
    await written(tmp_path / "data", store=url)
    (tmp_path / "other").mkdir()
    assert "belongs to another data folder" in await refused(tmp_path / "other", store=url)


async def test_a_folder_with_chats_as_files_is_refused(tmp_path: Path) -> None:
    """[SV8]: they would look as if they were gone."""
    await written(tmp_path / "data")
    assert "holds chats as files" in await refused(tmp_path / "data", store=sqlite_url(tmp_path / "store"))
    assert await started(tmp_path / "data") == ["one"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nosuch:///x", "no store is called 'nosuch'"),
        ("sqlite://relative.db", "a path begins with a third slash"),
        ("sqlite:///srv/x.db?synchronous=off", "loses what it confirmed"),
        ("sqlite:///srv/x.db?syncronous=full", "there is no option 'syncronous'"),
        ("postgresql://me:s3cret@127.0.0.1/db?nosuch=1", "there is no option"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_by_its_setting(url: str, sentence: str, tmp_path: Path) -> None:
    """[ST5]: before anything is reached or made, and without the password."""
    with pytest.raises(ConfigurationError) as told:
        choose(Settings(data=str(tmp_path / "data"), store=url))
    assert str(told.value).startswith("--store: ")
    assert sentence in str(told.value)
    assert "s3cret" not in str(told.value)


def test_a_bad_store_ends_with_78_and_one_sentence(tmp_path: Path) -> None:
    """[ST5]: nothing is made."""
    url = "postgresql://me:s3cret@127.0.0.1/db?nosuch=1"
    command = [sys.executable, "-m", "tellback_server", "serve", "--data", str(tmp_path / "data"), "--port", "0"]
    done = subprocess.run([*command, "--store", url], capture_output=True, text=True, check=False, timeout=GUARD_S)
    assert done.returncode == 78, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


async def test_what_only_the_log_keeps_is_all_there_after_a_restart(tmp_path: Path) -> None:
    """[SV9]: commits, branches, what came out of the trash, names; for a store that forgets with the process."""
    data, branch = tmp_path / "data", "character:Alice/Branch"
    async with running(data, store="memory:") as app:
        tab = await TabClient.join(app.urls[0])
        chat_id = (await tab.open(CHAT, create=True))["chat_id"]
        ids = (await tab.append(CHAT, "one", "two"))["messages"]
        answer = await tab.write("chat-branch", CHAT, message=ids[0], base="*", to="Branch")
        assert answer["type"] == "ack", answer
        head = (await tab.open(CHAT))["version"]["integrity"]
        assert (await tab.write("chat-delete", CHAT, base=head))["type"] == "ack"
        restored = await tab.ask("chat-restore", chat=f"id:{chat_id}", op=tab.ops[CHAT] + 1, to="Back")
        assert restored["type"] == "ack", restored
    for _restart in range(2):
        async with running(data, store="memory:") as app:
            tab = await TabClient.join(app.urls[0])
            listed = (await tab.ask("chat-list"))["chats"]
            assert {chat["chat"] for chat in listed} == {"character:Alice/Back", branch}
            assert texts((await tab.open("character:Alice/Back"))["messages"]) == ["one", "two"]
            assert texts((await tab.open(branch))["messages"])[0] == "one"
            assert (await tab.append(branch, "more"))["type"] == "ack"


async def test_characters_presets_and_groups_of_a_store(tmp_path: Path) -> None:
    """[SV6]: they are there when somebody asks; reading makes none; a preset keeps its state through a rename."""
    url = sqlite_url(tmp_path / "store")
    preset = {"preset": "OpenAI Settings/Default"}
    async with running(tmp_path / "data", store=url) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.ask("state-get", owner=OWNER))["states"] == {}
        assert (await tab.ask("character-list"))["characters"] == []
        for owner in (OWNER, preset):
            state = {"owner": owner, "op": 1, "namespace": "mood", "base": None, "set": {"of": "it"}}
            assert (await tab.ask("state-update", **state))["type"] == "ack"
        answer = await tab.ask("owner-rename", owner=preset, op=2, to="Mine", base="*")
        assert answer["type"] == "ack", answer
        await tab.open("group:Friends", create=True)
        assert (await tab.append("group:Friends", "hi"))["type"] == "ack"
        created = await tab.ask("chat-create", chat="group:Others", op=1, group="7")
        assert (created["code"], created["pointer"]) == ("not-found", "/group")
    async with running(tmp_path / "data", store=url) as app:
        tab = await TabClient.join(app.urls[0])
        (alice,) = (await tab.ask("character-list"))["characters"]
        assert (alice["character"], alice["chats"]) == ("Alice", 0)
        assert (await tab.ask("group-list"))["groups"] == []
        assert texts((await tab.open("group:Friends"))["messages"]) == ["hi"]
        mine = await tab.ask("state-get", owner={"preset": "OpenAI Settings/Mine"})
        assert mine["states"]["mood"]["data"] == {"of": "it"}
        assert (await tab.ask("state-get", owner=preset))["code"] == "renamed"
