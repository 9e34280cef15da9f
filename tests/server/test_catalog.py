"""Lists, search, active chats, characters and groups: raw frames against the whole server."""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.held_fs import HeldFs
from tests.support.real_data import COUNTS, real_user
from tests.support.server import Process, TabClient, running, sillytavern_copy, tree
from tests.support.waiting import GUARD_S

ALICE = "character:Alice/First meeting"


def address(path: str) -> str:
    """`chats/A/b.jsonl` as a chat's address."""
    kind, _slash, rest = path.removesuffix(".jsonl").partition("/")
    return f"character:{rest}" if kind == "chats" else f"group:{rest}"


def write_chat(data: Path, path: str, *texts: str, when_s: float | None = None, header: bool = True) -> Path:
    """A chat's file as SillyTavern writes it."""
    lines = [json.dumps({"user_name": "unused", "character_name": "unused", "chat_metadata": {}})] if header else []
    lines += [json.dumps({"name": "User", "is_user": True, "mes": text}) for text in texts]
    file = data / "default-user" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))
    if when_s is not None:
        os.utime(file, (when_s, when_s))
    return file


async def pages(tab: TabClient, kind: str = "chat-list", **fields: Any) -> list[list[dict[str, Any]]]:
    """Every page, from the first to the last."""
    found: list[list[dict[str, Any]]] = []
    cursor = None
    while True:
        page = await tab.ask(kind, cursor=cursor, **fields)
        assert page["type"] == kind, page
        found.append(page["chats" if kind == "chat-list" else "found"])
        cursor = page["cursor"]
        if cursor is None:
            return found


async def listed(tab: TabClient, **fields: Any) -> dict[str, dict[str, Any]]:
    """All chats by address; none twice."""
    chats = [chat for page in await pages(tab, **fields) for chat in page]
    found = {chat["chat"]: chat for chat in chats}
    assert len(found) == len(chats)
    return found


async def test_every_chat_of_the_real_folder_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    """[I1] [F1] Names, counts, sizes, the newest first; the folder stays as it is, byte for byte."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        answer = await tab.ask("chat-list")
        assert answer["cursor"] is None
        assert answer["total"] == len(COUNTS)
        found = {chat["chat"]: chat for chat in answer["chats"]}
        assert {name: chat["count"] for name, chat in found.items()} == {
            address(path): count for path, count in COUNTS.items()
        }
        changed = [chat["changed_ms"] for chat in answer["chats"]]
        assert changed == sorted(changed, reverse=True)
        for path in COUNTS:
            chat = found[address(path)]
            assert chat["size_bytes"] == (data / "default-user" / path).stat().st_size
            assert "chat_id" not in chat
            assert "damaged" not in chat
        branch = found["character:Mirelle Ashgrove/Branch #200 - 2024-09-30@18h44m02s"]
        assert branch["main_chat"] == "Mirelle Ashgrove - 2024-09-28@09h30m00s"
        assert found["group:2024-10-12@19h00m00s"]["group"] == "1795229131318"
        assert all(len(chat["preview"]) <= 400 for chat in found.values())
        assert found["character:Pip/Pip - 2024-09-30@09h00m00s"]["preview"]
    assert tree(data) == before


ODD: dict[str, tuple[bytes, int | None, bool | None]] = {
    "a torn tail": (b'{"chat_metadata":{}}\n{"mes":"one"}\n{"mes":"tw', 1, True),
    "a blank last line": (b'{"chat_metadata":{}}\n{"mes":"one"}\n\n', 1, False),
    "a byte order mark": (b'\xef\xbb\xbf{"chat_metadata":{}}\n{"mes":"one"}', 1, False),
    "only carriage returns": (b'{"chat_metadata":{}}\r{"mes":"one"}\r{"mes":"two"}', 0, True),
    "carriage returns and line feeds": (b'{"chat_metadata":{}}\r\n{"mes":"one"}\r\n', 1, False),
    "a tail of zeros": (b'{"chat_metadata":{}}\n{"mes":"one"}\n' + bytes(700), 1, True),
    "an empty name in the last line": (b'{"chat_metadata":{}}\n{"name":"","mes":"one"}', 1, False),
    "values that are no objects": (b'{"chat_metadata":{}}\n42\n"text"\n[]\ntrue\nnull\n{"mes":"one"}', 1, True),
    "a broken header": (b'{"chat_metadata":{\n{"mes":"one"}', 1, True),
    "no header": (b'{"name":"A","mes":"one"}\n{"name":"B","mes":"two"}', 2, False),
    "nothing at all": (b"", 0, False),
    "only blank lines": (b"\n \n\t\n", 0, False),
    "half a surrogate pair": (b'{"chat_metadata":{}}\n{"mes":"one \\ud83d"}', 1, False),
    "line separators inside": ('{"chat_metadata":{}}\n{"mes":"one\u2028two\u0085three"}'.encode(), 1, False),
    "huge integers and odd keys": (b'{"mes":"a"}\n{"mes":"b","x":99999999999999999999999,"__proto__":{}}', 2, False),
    "not a number": (b'{"chat_metadata":{}}\n{"mes":"one","x":NaN}', 0, True),
    "broken UTF-8": (b'{"chat_metadata":{}}\n{"mes":"one \xff"}\n{"mes":"two"}', 1, True),
    "surrogates as UTF-8": (b'{"chat_metadata":{}}\n{"mes":"one \xed\xa0\x80"}\n{"mes":"two"}', None, None),
    "content in parts": (b'{"metadata":{}}\n{"role":"user","content":[{"type":"text","text":"hello"}]}', 1, False),
    "a message that is text only": (b'{"chat_metadata":{}}\n{"mes":{"not":"text"}}', 1, False),
    "deep nesting": (b'{"chat_metadata":{}}\n{"mes":"one","x":' + b"[" * 300 + b"]" * 300 + b"}", 1, False),
    "metadata inside metadata": (b'{"chat_metadata":{"chat_metadata":{"main_chat":"X"}}}\n{"mes":"one"}', 1, False),
}


@pytest.mark.parametrize("kind", ["chats/Alice", "group chats"])
async def test_odd_files_are_listed_as_they_would_open_and_hide_nobody(tmp_path: Path, kind: str) -> None:
    """[I3] Torn, blank, zero-filled, header-less: each is in the list, with the count that opening it gives."""
    data = tmp_path / "data"
    folder = data / "default-user" / kind
    folder.mkdir(parents=True)
    for name, (content, _count, _damaged) in ODD.items():
        (folder / f"{name}.jsonl").write_bytes(content)
    (folder / "twice.jsonl.jsonl").write_bytes(b'{"mes":"one"}')
    (folder / ".hidden.jsonl").write_bytes(b'{"mes":"one"}')
    (folder / ".jsonl").write_bytes(b"no name")
    (folder / "a note.txt").write_bytes(b"no chat")
    if kind.startswith("chats"):
        write_chat(data, "chats/.Bob/One.jsonl", "hi")
    (folder / "a folder.jsonl").mkdir()
    (folder / "a link.jsonl").symlink_to(folder / "no header.jsonl")
    os.mkfifo(folder / "a pipe.jsonl")
    (folder / os.fsdecode(b"no text \xff.jsonl")).write_bytes(b'{"mes":"one"}')
    prefix = "character:Alice/" if kind.startswith("chats") else "group:"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        found = await listed(tab)
        bobs = {"character:.Bob/One"} if kind.startswith("chats") else set()
        assert set(found) == {prefix + name for name in [*ODD, "twice.jsonl", ".hidden"]} | bobs
        for name, (_content, count, is_damaged) in ODD.items():
            chat = found[prefix + name]
            opened = await tab.open(prefix + name)
            assert opened["type"] == "opened"
            assert chat["count"] == opened["count"], name
            assert chat.get("damaged", False) == opened.get("read_only", False), name
            if count is not None:
                # Without a header the first object of a character's chat is one when it is no message.
                assert (chat["count"], chat.get("damaged", False)) == (count, is_damaged), name
            live = (await listed(tab))[prefix + name]
            assert live == chat, name
        assert found[prefix + "content in parts"]["preview"] == "hello"
        assert found[prefix + "half a surrogate pair"]["preview"] == "one \ufffd"
        assert found[prefix + "a message that is text only"]["preview"] == ""


async def test_an_acknowledged_append_shows_in_the_next_list(tmp_path: Path) -> None:
    """[I2] Live chats answer from memory; after a crash too; folding changes nothing that a list shows but the time."""
    data = tmp_path / "data"
    write_chat(data, "chats/Alice/Old.jsonl", "long ago", when_s=1_700_000_000)
    server = await Process(data, "--checkpoint-interval", "3600").start()
    try:
        tab = await TabClient.join(server.url)
        reader = await TabClient.join(server.url)
        opened = await tab.open(ALICE, create=True)
        for number in range(30):
            ack = await tab.append(ALICE, f"message {number}")
            assert ack["type"] == "ack"
            answer = await reader.ask("chat-list", limit=1)
            assert answer["total"] == 2
            chat = answer["chats"][0]
            assert (chat["chat"], chat["count"], chat["preview"]) == (ALICE, number + 1, f"message {number}")
            assert chat["chat_id"] == opened["chat_id"]
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url)
        chat = (await listed(tab))[ALICE]
        assert (chat["count"], chat["preview"], chat["chat_id"]) == (30, "message 29", opened["chat_id"])
        assert await server.stop() == 0
        await server.start()
        tab = await TabClient.join(server.url)
        chat = (await listed(tab))[ALICE]
        assert (chat["count"], chat["preview"], chat["chat_id"]) == (30, "message 29", opened["chat_id"])
    finally:
        await server.kill()


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_lose_nothing_and_double_nothing(tmp_path: Path, limit: int) -> None:
    """[I5] While nothing changes: each chat once, the newest first, also for equal times and live chats between."""
    data = tmp_path / "data"
    for number in range(25):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", "hi", when_s=1_700_000_000 + number // 3)
    write_chat(data, "chats/Bob/Chat 1.jsonl", "hi", when_s=1_700_000_003)
    async with running(data, checkpoint_interval_s=3600) as app:
        tab = await TabClient.join(app.urls[0])
        for number in (3, 11):
            await tab.open(f"character:Alice/Chat {number}")
        await tab.append("character:Alice/Chat 11", "news")
        found = await pages(tab, limit=limit)
        chats = [chat for page in found for chat in page]
        assert len({chat["chat"] for chat in chats}) == len(chats) == 26
        assert chats[0]["chat"] == "character:Alice/Chat 11"
        changed = [chat["changed_ms"] for chat in chats]
        assert changed == sorted(changed, reverse=True)
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        only = await pages(tab, limit=limit, character="Bob")
        assert [chat["chat"] for page in only for chat in page] == ["character:Bob/Chat 1"]
        assert await pages(tab, character="Nobody") == [[]]


async def test_what_changes_between_two_pages_is_told_again_and_nothing_is_lost(tmp_path: Path) -> None:
    """[I5] A chat that moved in front of the cursor comes once more, behind the others; new ones too."""
    data = tmp_path / "data"
    for number in range(10):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", "hi", when_s=1_700_000_000 + number)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.ask("chat-list", limit=4)
        names = [chat["chat"] for chat in first["chats"]]
        assert names == [f"character:Alice/Chat {number}" for number in (9, 8, 7, 6)]
        await tab.open("character:Alice/Chat 2")
        await tab.append("character:Alice/Chat 2", "changed before its page")
        write_chat(data, "chats/Alice/Chat 8.jsonl", "changed", "by another program")
        (data / "default-user/chats/Alice/Chat 5.jsonl").unlink()
        await tab.open("character:Alice/New", create=True)
        rest = []
        cursor = first["cursor"]
        while cursor is not None:
            page = await tab.ask("chat-list", limit=4, cursor=cursor)
            rest += page["chats"]
            cursor = page["cursor"]
        told = [chat["chat"].rpartition("/")[2] for chat in rest]
        assert told[:4] == ["Chat 4", "Chat 3", "Chat 1", "Chat 0"]
        assert sorted(told[4:]) == ["Chat 2", "Chat 8", "New"]
        by_name = {chat["chat"].rpartition("/")[2]: chat for chat in rest}
        assert by_name["Chat 2"]["preview"] == "changed before its page"
        assert by_name["Chat 8"]["count"] == 2


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "W10", 7, "WyJDaGF0TGlzdCIsWzEsImEiXSxbMSwiYSJdXQ"])
async def test_a_cursor_that_is_none_is_refused(tmp_path: Path, cursor: Any) -> None:
    """[I5] Made up, cut, or of another question: `bad-frame`, and the connection goes on."""
    data = tmp_path / "data"
    for number in range(3):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", "hi")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        refused = await tab.ask("chat-list", cursor=cursor)
        assert (refused["type"], refused["code"], refused["pointer"]) == ("error", "bad-frame", "/cursor")
        good = (await tab.ask("chat-list", limit=1))["cursor"]
        refused = await tab.ask("chat-list", limit=1, cursor=good, character="Alice")
        assert refused["code"] == "bad-frame"
        refused = await tab.ask("chat-search", query="hi", cursor=good)
        assert refused["code"] == "bad-frame"
        both = await tab.ask("chat-list", character="Alice", group="*")
        assert (both["code"], both["pointer"]) == ("bad-frame", "/group")
        assert (await tab.ask("chat-list", limit=0))["code"] == "bad-frame"
        assert (await tab.ask("chat-list", cursor=good, limit=1))["type"] == "chat-list"


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "foreign", "older", "no JSON", "a folder"])
async def test_an_index_that_cannot_be_used_is_rebuilt(tmp_path: Path, damage: str) -> None:
    """[I1] The index is never the truth: whatever stands there, the list is that of the folders."""
    data = tmp_path / "data"
    for number in range(5):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", f"message {number}")
    index = data / ".tellback/index/default-user.jsonl"
    async with running(data) as app:
        first = await listed(await TabClient.join(app.urls[0]))
    content = index.read_bytes()
    match damage:
        case "missing":
            index.unlink()
        case "empty":
            index.write_bytes(b"")
        case "cut":
            index.write_bytes(content[:-20])
        case "flipped":
            at = content.index(b"message 3")
            index.write_bytes(content[:at] + b"M" + content[at + 1 :])
        case "foreign":
            index.write_bytes(content.replace(b'"default-user"', b'"somebody"', 1))
        case "older":
            index.write_bytes(content.replace(b'"format":1', b'"format":0', 1))
        case "no JSON":
            index.write_bytes(b"\xff\x00" * 50)
        case _:
            index.unlink()
            index.mkdir()
    async with running(data) as app:
        assert await listed(await TabClient.join(app.urls[0])) == first
    if damage != "a folder":
        assert index.read_bytes() == content


async def test_an_index_saves_reading_and_trusts_only_the_stat(tmp_path: Path) -> None:
    """[I1] An entry holds for one size, mtime and inode: a change of any of them is seen."""
    data = tmp_path / "data"
    file = write_chat(data, "chats/Alice/One.jsonl", "first", when_s=1_700_000_000)
    async with running(data) as app:
        await listed(await TabClient.join(app.urls[0]))
    index = data / ".tellback/index/default-user.jsonl"
    head, _, body = index.read_bytes().partition(b"\n")
    body = body.replace(b"first", b"INDEX")
    index.write_bytes(json.dumps({**json.loads(head), "crc32": zlib.crc32(body)}).encode() + b"\n" + body)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await listed(tab))["character:Alice/One"]["preview"] == "INDEX"
        write_chat(data, "chats/Alice/One.jsonl", "third", when_s=1_700_000_000)
        os.utime(file, ns=(1_700_000_000_000_000_001, 1_700_000_000_000_000_001))
        assert (await listed(tab))["character:Alice/One"]["preview"] == "third"
        other = file.with_name("new")
        other.write_bytes(file.read_bytes().replace(b"third", b"forth"))
        os.utime(other, ns=(1_700_000_000_000_000_001, 1_700_000_000_000_000_001))
        other.replace(file)
        assert (await listed(tab))["character:Alice/One"]["preview"] == "forth"


async def test_groups_filter_lists_and_the_trash_is_a_list_of_its_own(tmp_path: Path) -> None:
    """[I6] `*` is every group chat, an id the chats of that group; `deleted` is what the trash's manifests tell."""
    data = sillytavern_copy(tmp_path)
    write_chat(data, "group chats/Nobody's.jsonl", "lost", header=False)
    entry = data / "default-user/trash/1763700000000-0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b"
    (entry / "chats/Pip").mkdir(parents=True)
    (entry / "chats/Pip/Gone.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"farewell"}')
    (entry / "manifest.json").write_text(json.dumps({
        "id": "0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b", "name": "character:Pip/Gone", "deleted_ms": 1763700000000,
        "reason": "deleted", "files": ["chats/Pip/Gone.jsonl"],
    }))
    (data / "default-user/trash/1763700000001-broken").mkdir()
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        group = await listed(tab, group="1795229131318")
        assert set(group) == {"group:2024-10-12@19h00m00s", "group:2025-09-02@20h15m00s"}
        assert set(await listed(tab, group="*")) == {*group, "group:Nobody's"}
        assert await listed(tab, group="no such group") == {}
        assert len(await listed(tab, character="Pip")) == 3
        gone = await listed(tab, deleted=True)
        assert gone == {"character:Pip/Gone": {
            "chat": "character:Pip/Gone", "chat_id": "0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b", "character": "Pip",
            "count": 1, "preview": "farewell", "deleted_ms": 1763700000000,
            "changed_ms": (entry / "chats/Pip/Gone.jsonl").stat().st_mtime_ns // 1_000_000,
            "size_bytes": (entry / "chats/Pip/Gone.jsonl").stat().st_size,
        }}
        assert await listed(tab, deleted=True, character="Alice") == {}
        assert "character:Pip/Gone" not in await listed(tab)


async def test_characters_and_groups_are_read_from_cards_and_group_files(tmp_path: Path) -> None:
    """[I13] Names from the cards, the number of chats, the active chat; broken pictures keep their file's name."""
    data = sillytavern_copy(tmp_path)
    folder = data / "default-user/characters"
    picture = (folder / "Pip.png").read_bytes()
    (folder / "Broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 40)
    (folder / "Empty.png").write_bytes(b"")
    (folder / "Cut.png").write_bytes(picture[: len(picture) // 2])
    (folder / "odd.png name.png").write_bytes(picture)
    (folder / "Pip.state.memory.json").write_text("{}")
    groups = data / "default-user/groups"
    (groups / "broken.json").write_text("{")
    (groups / "list.json").write_text("[]")
    (groups / "big.json").write_text('{"id":"big","n":9007199254740993,"chats":null}')
    before = tree(data)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        answer = await tab.ask("character-list")
        found = {entry["character"]: entry for entry in answer["characters"]}
        assert set(found) == {"Mirelle Ashgrove", "Pip", "Kapitän Jonas Thale", "佐藤ひなこ", "Broken", "Empty", "Cut",
                              "odd.png name"}
        assert found["Pip"]["name"] == found["odd.png name"]["name"] == "Pip"
        assert found["Pip"]["avatar"] == "Pip.png"
        assert found["Pip"]["chats"] == 3
        assert found["佐藤ひなこ"]["chats"] == 3
        # The card names a chat that is gone: the one that changed last.
        newest = (await tab.ask("chat-list", character="Pip", limit=1))["chats"][0]["chat"]
        assert f"character:Pip/{found['Pip']['chat']}" == newest
        assert (found["Broken"]["name"], found["Broken"]["chat"], found["Broken"]["chats"]) == ("Broken", None, 0)
        answer = await tab.ask("group-list")
        by_id = {group["id"]: group for group in answer["groups"]}
        assert set(by_id) == {"1795229131318", "big"}
        assert by_id["big"]["n"] == 9007199254740993
        assert by_id["1795229131318"] == json.loads((groups / "1795229131318.json").read_text())
    assert tree(data) == before


async def test_large_groups_and_many_characters_come_in_pages(tmp_path: Path) -> None:
    """[I15] Groups of together 6 MB are never in one frame; one that is larger than a page is a page."""
    data = tmp_path / "data"
    for folder in ("groups", "characters", "chats"):
        (data / "default-user" / folder).mkdir(parents=True)
    sizes = {"a": 700_000, "b": 300_000, "c": 3_000_000, "d": 10, "e": 1_000_000}
    for name, size in sizes.items():
        group = {"id": name, "name": "x" * size, "chats": []}
        (data / f"default-user/groups/{name}.json").write_text(json.dumps(group))
    for number in range(7):
        (data / f"default-user/characters/{number}.png").write_bytes(b"a card")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        found: list[list[str]] = []
        cursor = None
        while not found or cursor is not None:
            answer = await tab.ask("group-list", cursor=cursor)
            assert answer["total"] == 5
            found.append([group["id"] for group in answer["groups"]])
            cursor = answer["cursor"]
        assert found == [["a", "b"], ["c"], ["d", "e"]]
        first = await tab.ask("character-list", limit=4)
        rest = await tab.ask("character-list", limit=4, cursor=first["cursor"])
        assert [[one["character"] for one in page["characters"]] for page in (first, rest)] == [
            ["0", "1", "2", "3"], ["4", "5", "6"]]
        assert (first["total"], rest["cursor"]) == (7, None)
        for question, asked in (("group-list", first["cursor"]), ("character-list", "x")):
            refused = await tab.ask(question, cursor=asked)
            assert (refused["code"], refused["pointer"]) == ("bad-frame", "/cursor")


async def test_somebody_elses_chats_are_never_listed_or_found(tmp_path: Path) -> None:
    """[I4] Another user's folder does not exist, in lists and in searches; nor do folders behind links."""
    data = tmp_path / "data"
    write_chat(data, "chats/Alice/Mine.jsonl", "my secret")
    (data / "other/chats/Bob").mkdir(parents=True)
    (data / "other/chats/Bob/Theirs.jsonl").write_text('{"mes":"their secret"}')
    (data / "default-user/chats/Link").symlink_to(data / "other/chats/Bob")
    (data / "default-user/group chats").symlink_to(data / "other/chats/Bob")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert set(await listed(tab)) == {"character:Alice/Mine"}
        found = [hit for page in await pages(tab, "chat-search", query="secret") for hit in page]
        assert [hit["chat"] for hit in found] == ["character:Alice/Mine"]
        refused = await tab.ask("active-chat", character="Link", chat="character:Link/Theirs")
        assert refused["code"] == "not-found"


async def found_in(tab: TabClient, query: str, **fields: Any) -> list[dict[str, Any]]:
    """Everything that a search finds."""
    return [hit for page in await pages(tab, "chat-search", query=query, **fields) for hit in page]


def marked(hit: dict[str, Any]) -> list[str]:
    """What the ranges of a snippet point to."""
    units = hit["snippet"].encode("utf-16-le")
    return [units[2 * start : 2 * end].decode("utf-16-le") for start, end in hit["ranges"]]


async def test_a_search_finds_every_word_in_one_message_whatever_its_case(tmp_path: Path) -> None:
    """[I7] Words of one message together; casefolded; ranges in UTF-16 units; hidden fields are not looked into."""
    data = tmp_path / "data"
    messages = [
        {"name": "Odile", "mes": "One LETTER, never opened. 😀 A lost letter."},
        {"name": "User", "mes": "Lost is not the word.", "extra": {"reasoning": "a letter"}},
        {"name": "Letter", "mes": "I am lost."},
        {"role": "assistant", "content": "lost and letter in content"},
        {"name": "User", "mes": "Die STRASSE ist lang"},
        {"name": "User", "mes": "x" * 500 + " needle " + "y" * 500},
        {"name": "User", "mes": "escaped \u006eeedle as JSON may write it"},
        {"name": "User", "mes": "İstanbul ﬁne"},
    ]
    lines = [json.dumps({"chat_metadata": {}})] + [json.dumps(message) for message in messages]
    file = data / "default-user/chats/Alice/A chat of letters.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes("\n".join(lines).encode().replace(b"\\\\u006e", b"\\u006e"))
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for is_live in (False, True):
            if is_live:
                opened = await tab.open("character:Alice/A chat of letters")
                ids = [message["id"] for message in opened["messages"]]
            hits = await found_in(tab, "lost letter")
            assert [hit["index"] for hit in hits] == [0, 2, 3]
            assert hits[0]["chat"] == "character:Alice/A chat of letters"
            assert marked(hits[0]) == ["LETTER", "lost", "letter"]
            assert marked(hits[1]) == ["lost"]
            assert marked(hits[2]) == ["lost", "letter"]
            if is_live:
                assert [hit["message"] for hit in hits] == [ids[0], ids[2], ids[3]]
            assert [hit["index"] for hit in await found_in(tab, "straße")] == [4]
            assert marked((await found_in(tab, "straße"))[0]) == ["STRASSE"]
            needles = await found_in(tab, "NEEDLE")
            assert [hit["index"] for hit in needles] == [5, 6]
            assert len(needles[0]["snippet"]) <= 240
            assert marked(needles[0]) == ["needle"]
            assert marked((await found_in(tab, "FINE"))[0]) == ["ﬁne"]
            assert await found_in(tab, "reasoning") == []
            name = await found_in(tab, "letters chat")
            assert [("message" in hit, marked(hit)) for hit in name] == [(False, ["chat", "letters"])]
        assert (await tab.ask("chat-search", query="   "))["pointer"] == "/query"
        assert (await tab.ask("chat-search", query=""))["code"] == "bad-frame"
        assert (await tab.ask("chat-search", query="x" * 1001))["code"] == "bad-frame"


@pytest.mark.parametrize("limit", [1, 2, 7, 200])
async def test_a_search_in_pages_finds_what_a_search_at_once_finds(tmp_path: Path, limit: int) -> None:
    """[I8] In the order of the list, each message once, wherever a page ends; live chats at what is durable."""
    data = tmp_path / "data"
    for number in range(6):
        texts = [f"message {index} {'needle' if index % 3 == 0 else 'hay'}" for index in range(number * 3)]
        write_chat(data, f"chats/Alice/Chat {number} needle.jsonl", *texts, when_s=1_700_000_000 + number)
    async with running(data, checkpoint_interval_s=3600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open("character:Alice/Chat 3 needle")
        await tab.append("character:Alice/Chat 3 needle", "a needle that no file holds")
        hits = await found_in(tab, "needle", limit=limit)
        told = [(hit["chat"][-8], hit.get("index")) for hit in hits]
        wanted: list[tuple[str, int | None]] = []
        for number in (3, 5, 4, 2, 1, 0):
            wanted.append((str(number), None))
            wanted += [(str(number), index) for index in range(0, number * 3, 3)]
            wanted += [("3", 9)] if number == 3 else []
        assert told == wanted
        for hit in hits:
            if "index" in hit:
                opened = await tab.open(hit["chat"])
                assert opened["messages"][hit["index"]]["id"] == hit["message"]
        assert {hit["chat"] for hit in await found_in(tab, "needle", character="Nobody")} == set()


async def test_a_search_stops_at_its_bound_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[I8] A page without time is short or empty, has a cursor, and moves on all the same."""
    monkeypatch.setattr("tellback_server.search_page.PAGE_S", 0.0)
    data = tmp_path / "data"
    for number in range(3):
        texts = [f"message {index}" + (" needle" if index == 150 else "") for index in range(200)]
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", *texts)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        found = await pages(tab, "chat-search", query="needle")
        assert len(found) >= 6
        assert [hit["index"] for page in found for hit in page] == [150, 150, 150]


async def test_a_search_keeps_nobody_waiting_and_ends_with_its_tab(tmp_path: Path) -> None:
    """[I9] Acks of others and of the same connection go on; a tab that leaves ends its search."""
    data = tmp_path / "data"
    texts = ["hay " * 30] * 4000
    for number in range(10):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", *texts)
    fs = HeldFs()
    async with running(data, fs=fs) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(ALICE, create=True)
        fs.hold_reads()
        await tab.raw.send({"type": "chat-search", "id": 900, "query": "needle"})
        await tab.raw.send({"type": "chat-list", "id": 901, "limit": 1})
        await tab.raw.send({"type": "ping", "id": 902})
        op = tab.ops[ALICE] + 1
        await tab.raw.send({"type": "append", "id": 903, "chat": ALICE, "op": op, "base": "*",
                            "messages": [{"mes": "hi"}]})
        assert {(await tab.raw.receive())["id"] for _ in range(2)} == {902, 903}
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S), "the search has begun"
        fs.let_go()
        order = [(await tab.raw.receive())["id"] for _ in range(2)]
        assert order == [900, 901], "answers of the desk keep the order of the questions"
        for number in range(6):
            leaver = await TabClient.join(app.urls[0])
            await leaver.raw.send({"type": "chat-search", "id": number, "query": "needle"})
            leaver.raw.abort()
        page = await tab.ask("chat-search", query="needle")
        assert page["found"] == []


async def test_answers_come_in_the_order_of_the_questions_however_they_are_sent(tmp_path: Path) -> None:
    """[I9] In bursts and one by one, also when a question arrives just as the one before was answered."""
    data = tmp_path / "data"
    for number in range(5):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", "hi")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        kinds: list[dict[str, Any]] = [
            {"type": "chat-list", "limit": 2}, {"type": "character-list"}, {"type": "chat-search", "query": "hi"},
            {"type": "active-chat", "character": "Alice"}, {"type": "chat-list", "cursor": "none"},
            {"type": "group-list"},
        ]
        heard: list[int] = []
        for number in range(240):
            await tab.raw.send({**kinds[number % len(kinds)], "id": number})
            if number % 7 in (0, 3):
                heard.append((await tab.raw.receive())["id"])
        while len(heard) < 240:
            heard.append((await tab.raw.receive())["id"])
        assert heard == list(range(240))


async def test_the_active_chat_is_remembered_by_its_id_and_survives_everything(tmp_path: Path) -> None:
    """[I10] [I11] Durable before it is answered; kill, lost log and lost copy; a file that is gone falls back."""
    data = sillytavern_copy(tmp_path)
    old = "character:Pip/Pip - 2024-09-30@09h00m00s"
    other = "character:Pip/Pip - 2024-11-01@12h00m00s"
    server = await Process(data).start()
    try:
        tab = await TabClient.join(server.url)
        newest = (await tab.ask("chat-list", character="Pip", limit=1))["chats"][0]["chat"]
        assert (await tab.ask("active-chat", character="Pip"))["chat"] == newest
        answer = await tab.ask("active-chat", character="Pip", chat=old)
        assert answer == {"type": "active-chat", "id": answer["id"], "chat": old, "chat_id": answer["chat_id"],
                          "character": "Pip"}
        opened = await tab.open(old)
        assert opened["chat_id"] == answer["chat_id"]
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url)
        assert (await tab.ask("active-chat", character="Pip"))["chat"] == old
        found = (await tab.ask("character-list"))["characters"]
        assert next(entry["chat"] for entry in found if entry["character"] == "Pip") == old.partition("/")[2]
        # A chat that we wrote to is known by its id, whatever its file is called.
        await tab.open(old)
        await tab.append(old, "still here")
        assert await server.stop() == 0
        copy = data / ".tellback/sessions/default-user/active-chats.json"
        assert copy.is_file()
        folder = data / "default-user/chats/Pip"
        for path in list(folder.iterdir()):
            if path.name.startswith("Pip - 2024-09-30@09h00m00s."):
                path.rename(folder / path.name.replace("Pip - 2024-09-30@09h00m00s", "Renamed by hand"))
        await server.start()
        tab = await TabClient.join(server.url)
        answer = await tab.ask("active-chat", character="Pip")
        assert (answer["chat"], answer["chat_id"]) == ("character:Pip/Renamed by hand", opened["chat_id"])
        assert await server.stop() == 0
        copy.unlink()
        await server.start()
        tab = await TabClient.join(server.url)
        assert (await tab.ask("active-chat", character="Pip"))["chat"] == "character:Pip/Renamed by hand"
        assert (await tab.ask("active-chat", character="Pip", chat=f"id:{opened['chat_id']}"))["chat"] == (
            "character:Pip/Renamed by hand"
        )
        assert await server.stop() == 0
        (folder / "Renamed by hand.jsonl").unlink()
        await server.start()
        tab = await TabClient.join(server.url)
        fallback = (await tab.ask("active-chat", character="Pip"))["chat"]
        assert fallback == (await tab.ask("chat-list", character="Pip", limit=1))["chats"][0]["chat"]
        assert (await tab.ask("active-chat", character="Pip", chat=None))["chat"] is None
        assert (await tab.ask("active-chat", character="Pip"))["chat"] is None
        assert (await tab.ask("active-chat", character="Pip", chat=other))["chat"] == other
        refused = await tab.ask("active-chat", character="Mirelle Ashgrove", chat=other)
        assert (refused["code"], refused["pointer"]) == ("bad-frame", "/chat")
        assert (await tab.ask("active-chat", character="Pip", chat="character:Pip/None"))["code"] == "not-found"
        assert (await tab.ask("active-chat", character="Pip", chat="Pip"))["code"] == "name-illegal"
        assert (await tab.ask("active-chat", character="Pip", group="x"))["code"] == "bad-frame"
        assert (await tab.ask("active-chat"))["code"] == "bad-frame"
        assert (await tab.ask("active-chat", group="no such group"))["code"] == "not-found"
        # SillyTavern's own memory of a group, then ours.
        group = await tab.ask("active-chat", group="1795229131318")
        assert group["chat"] == "group:2025-09-02@20h15m00s"
        group = await tab.ask("active-chat", group="1795229131318", chat="group:2024-10-12@19h00m00s")
        assert (await tab.ask("active-chat", group="1795229131318"))["chat"] == "group:2024-10-12@19h00m00s"
        assert (await tab.ask("active-chat", group="1795229131318", chat=other))["code"] == "bad-frame"
        told = (await tab.ask("group-list"))["groups"][0]
        assert told["chat_id"] == "2024-10-12@19h00m00s"
        source = real_user() / "groups/1795229131318.json"
        # [F12]: with the shown chat its metadata change places, as in SillyTavern; nothing else does.
        wanted = json.loads(source.read_text())
        shown, note = wanted["chat_metadata"], wanted["past_metadata"]["2024-10-12@19h00m00s"]
        wanted |= {"chat_id": "2024-10-12@19h00m00s", "chat_metadata": note}
        wanted["past_metadata"]["2025-09-02@20h15m00s"] = shown
        written = (data / "default-user/groups/1795229131318.json").read_text()
        assert written == json.dumps(wanted, indent=4, ensure_ascii=False)
    finally:
        await server.kill()


async def test_the_active_chat_survives_the_end_of_its_log_segment(tmp_path: Path) -> None:
    """[I12] The log may forget a choice only when the copy has it."""
    data = tmp_path / "data"
    write_chat(data, "chats/Alice/One.jsonl", "hi", when_s=1_700_000_000)
    write_chat(data, "chats/Alice/Two.jsonl", "hi", when_s=1_700_000_001)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.ask("active-chat", character="Alice", chat="character:Alice/One")
        assert app._catalog.needed is not None
        assert app._keeper.needed_elsewhere() == app._catalog.needed
        await app._catalog._save()
        assert app._catalog.needed is None
    for path in (data / ".tellback/log").iterdir():
        path.unlink()
    (data / ".tellback/term").unlink()
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.ask("active-chat", character="Alice"))["chat"] == "character:Alice/One"


async def test_what_is_written_while_chats_are_switched_goes_to_the_chat_that_was_meant(tmp_path: Path) -> None:
    """[R27] [I10] Writes name their chat: opening and choosing others in between moves none of them."""
    data = tmp_path / "data"
    chats = [f"character:Alice/Chat {number}" for number in range(4)]
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        other = await TabClient.join(app.urls[0])
        for chat in chats:
            await tab.open(chat, create=True)
        sent = []
        for number in range(80):
            chat = chats[number % 4]
            tab.requests += 1
            tab.ops[chat] += 1
            sent.append(tab.requests)
            await tab.raw.send({"type": "append", "id": tab.requests, "chat": chat, "op": tab.ops[chat], "base": "*",
                                "messages": [{"mes": f"{chat} {number}"}]})
            await tab.raw.send({"type": "active-chat", "id": 10_000 + number, "character": "Alice",
                                "chat": chats[(number + 1) % 4]})
            await tab.raw.send({"type": "close", "id": 20_000 + number, "chat": chat})
            await tab.raw.send({"type": "open", "id": 30_000 + number, "chat": chat, "since": None, "tail": 0})
        answers: dict[int, dict[str, Any]] = {}
        wanted = {*sent, *range(10_000, 10_080)}
        while not wanted <= answers.keys():
            frame = await tab.raw.receive()
            answers[frame["id"]] = frame
        assert all(answers[request]["type"] == "ack" for request in sent)
        assert all(answers[10_000 + number]["chat"] == chats[(number + 1) % 4] for number in range(80))
        for chat in chats:
            opened = await other.open(chat)
            assert len(opened["messages"]) == 20
            assert all(message["mes"].startswith(f"{chat} ") for message in opened["messages"])
        assert (await other.ask("active-chat", character="Alice"))["chat"] == chats[0]


async def test_ten_thousand_chats_list_in_pages_while_acks_go_on(tmp_path: Path) -> None:
    """[I1] [I14] The folder is read beside the loop: building the index for 10,000 chats holds up no ack for long."""
    data = tmp_path / "data"
    for number in range(10_000):
        write_chat(data, f"chats/Char {number % 20}/Chat {number}.jsonl", "hello " * 20, "there " * 20)
    async with running(data) as app:
        reader, writer = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        await writer.open(ALICE, create=True)
        loop = asyncio.get_running_loop()
        slowest_s, acks, done = 0.0, 0, False

        async def write() -> None:
            nonlocal slowest_s, acks
            while not done:
                before_s = loop.time()
                assert (await writer.append(ALICE, "on and on"))["type"] == "ack"
                slowest_s = max(slowest_s, loop.time() - before_s)
                acks += 1

        writing = asyncio.create_task(write())
        # The chat that is being written to is told again with each page.
        chats = {chat["chat"] for page in await pages(reader, limit=1000) for chat in page}
        done = True
        await writing
        assert len(chats) == 10_001
        assert acks > 10
        # The server shares this loop and this thread with the tabs, and the disk with others.
        assert slowest_s < 0.25, slowest_s
        before_s = loop.time()
        answer = await reader.ask("chat-list")
        warm_s = loop.time() - before_s
        assert (len(answer["chats"]), answer["total"]) == (200, 10_001)
        assert warm_s < 0.5
