"""Which chat a context shows, and the life of chats, on a copy of a real SillyTavern folder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tellback_client import Client, NotFoundError, RefusedError, ServerProcess, connect
from tellback_client.context import Context, EventTypes, ReadOnlyViewError, create_context
from tests.support.contexts import settled
from tests.support.server import sillytavern_copy
from tests.support.waiting import until
from tests.support.warm_server import WarmServer

ALICE = "Mirelle Ashgrove"
FIRST = "Mirelle Ashgrove - 2024-09-28@09h30m00s"
OTHER = "Checkpoint #1 - 2024-09-30@10h02m11s"
GROUP = "1795229131318"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with WarmServer(sillytavern_copy(tmp_path)) as process:
        yield process


def heard_by(context: Context) -> list[tuple[Any, ...]]:
    heard: list[tuple[Any, ...]] = []
    for name in (
        EventTypes.CHAT_CHANGED, EventTypes.CHAT_CREATED, EventTypes.GROUP_CHAT_CREATED, EventTypes.CHAT_RENAMED,
        EventTypes.CHAT_DELETED, EventTypes.GROUP_CHAT_DELETED, EventTypes.MESSAGE_SENT,
    ):
        context.event_source.on(name, lambda *arguments, name=name: heard.append((name.name, *arguments)))
    return heard


async def shown(client: Client, chat: str = FIRST) -> Context:
    return await create_context(client, chat=f"character:{ALICE}/{chat}")


async def test_what_is_shown_is_told_by_properties(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        assert context.get_current_chat_id() == FIRST
        assert context.get_message_count() == 300
        assert context.character_id is not None
        assert context.characters[context.character_id]["avatar"] == f"{ALICE}.png"
        assert context.name2 == ALICE
        assert context.name1 == "User"
        assert context.group_id is None
        assert [group["id"] for group in context.groups] == [GROUP]
        assert context.online_status == "connected"
        for change in (
            lambda: context.characters.clear(), lambda: context.groups[0].pop("id"),
            lambda: context.groups[0]["members"].append("x"), lambda: context.chat_metadata.clear(),
        ):
            with pytest.raises(ReadOnlyViewError):
                change()
        for name in ("chat", "characters", "groups", "name1", "name2", "character_id", "group_id", "chat_metadata"):
            with pytest.raises(AttributeError):
                setattr(context, name, None)


async def test_a_context_without_a_chat_says_so(server: ServerProcess) -> None:
    async with connect(server.url) as client, await create_context(client, name1="Me") as context:
        assert context.get_current_chat_id() is context.character_id is context.group_id is None
        assert (context.name1, context.name2) == ("Me", "")
        assert list(context.chat) == []
        assert context.chat_metadata == {}
        assert context.get_message(0) is None
        assert context.swipe.is_allowed() is False
        for call in (
            context.add_messages({"mes": "x"}), context.save_chat(), context.get_chat_state("memory"),
            context.save_chat_metadata({}), context.open_character_chat(FIRST), context.reload_current_chat(),
            context.do_new_chat(), context.get_past_character_chats(), context.swipe.right(),
        ):
            with pytest.raises(RefusedError, match="not-open"):
                await call
        with pytest.raises(ValueError, match="one"):
            await create_context(client, chat="group:x", group="y")


async def test_past_chats_have_the_seeds_fields(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        chats = await context.get_past_character_chats()
        assert {chat["file_id"] for chat in chats} == {
            path.stem for path in (server.data / "default-user" / "chats" / ALICE).glob("*.jsonl")}
        for chat in chats:
            assert set(chat) == {"file_name", "file_id", "file_size", "mes", "last_mes"}
            assert chat["file_name"] == chat["file_id"] + ".jsonl"
            number, unit = chat["file_size"].split()
            assert float(number) > 0
            assert unit in ("B", "KB", "MB")
            assert chat["last_mes"] > 1_600_000_000_000
        index = context.character_id
        assert index is not None
        for same in (index, str(index), f"{ALICE}.png", ALICE):
            assert await context.get_past_character_chats(same) == chats
        assert len(await context.get_past_character_chats("Pip.png")) == 3
        with pytest.raises(NotFoundError):
            await context.get_past_character_chats(99)


async def test_another_chat_is_shown_or_the_same_stays(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        await context.events_delivered()
        heard = heard_by(context)
        context.set_extension_prompt("a", "text", 1, 0)
        await context.open_character_chat(OTHER + ".jsonl")
        await context.events_delivered()
        assert context.get_current_chat_id() == OTHER
        assert dict(context.extension_prompts) == {}
        assert heard == [("CHAT_CHANGED", OTHER)]
        with pytest.raises(NotFoundError):
            await context.open_character_chat("never was")
        assert context.get_current_chat_id() == OTHER
        await until(lambda: len(client.chats) == 1)

        assert await context.close_current_chat() is True
        await context.events_delivered()
        assert context.get_current_chat_id() is context.character_id is None
        assert heard[-1] == ("CHAT_CHANGED", None)
        await context.select_character(f"{ALICE}.png")
        assert context.get_current_chat_id() == OTHER
        await until(lambda: len(client.chats) == 1)


async def test_a_groups_chats(server: ServerProcess) -> None:
    async with connect(server.url) as client, await create_context(client, group=GROUP) as context:
        assert context.group_id == GROUP
        assert context.character_id is None
        first, second = context.groups[0]["chats"]
        await context.open_group_chat(GROUP, first)
        assert context.get_current_chat_id() == first
        await context.open_group_chat(GROUP, second + ".jsonl")
        assert context.get_current_chat_id() == second
        for wrong in ((GROUP, "never was"), ("nobody", first)):
            with pytest.raises(NotFoundError):
                await context.open_group_chat(*wrong)
        assert context.get_current_chat_id() == second

        heard = heard_by(context)
        await context.do_new_chat()
        await context.events_delivered()
        made = context.get_current_chat_id()
        assert heard == [("CHAT_CHANGED", made), ("GROUP_CHAT_CREATED", made)]
        assert list(context.groups[0]["chats"]) == [first, second, made]
        assert context.group_id == GROUP


async def test_r27_a_write_goes_to_the_chat_it_was_made_in(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        before = context.get_message_count()
        writes: list[asyncio.Task[Any]] = []
        for number in range(10):
            writes += [
                asyncio.create_task(context.add_messages({"mes": f"mid-save {number}"})),
                asyncio.create_task(context.update_messages({"index": 0, "patch": {"extra": {f"n{number}": 1}}})),
                asyncio.create_task(context.update_chat_state("counter", lambda state: {"n": state.get("n", 0) + 1})),
                asyncio.create_task(context.save_chat_metadata({f"n{number}": number})),
            ]
        await asyncio.sleep(0)
        switching = asyncio.create_task(context.open_character_chat(OTHER))
        server.kill()
        await asyncio.to_thread(server.restart)
        client.reconnect()
        await switching
        count = context.get_message_count()
        assert [await write for write in writes[::4]] == list(range(before, before + 10))
        assert all(await asyncio.gather(*writes[2::4], *writes[3::4]))
        await asyncio.gather(*writes)

        assert context.get_current_chat_id() == OTHER
        assert context.get_message_count() == count
        assert not any("mid-save" in message["mes"] for message in context.chat)
        assert await context.get_chat_state("counter") is None
        await context.open_character_chat(FIRST)
        assert [message["mes"] for message in context.chat[before:]] == [f"mid-save {n}" for n in range(10)]
        assert {f"n{number}" for number in range(10)} <= set(context.chat[0]["extra"])
        assert {f"n{number}": number for number in range(10)}.items() <= context.chat_metadata.items()
        assert await context.get_chat_state("counter") == {"n": 10}


async def test_events_of_a_chat_end_where_the_next_begins(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        await context.events_delivered()
        gate = asyncio.Event()

        async def slow(_index: int) -> None:
            await gate.wait()

        context.event_source.on(EventTypes.MESSAGE_SENT, slow)
        heard = heard_by(context)
        for number in range(3):
            await context.add_messages({"mes": str(number), "is_user": True})
        await context.rename_chat(FIRST, "New name")
        await context.open_character_chat(OTHER)
        gate.set()
        await context.events_delivered()
        assert [event[0] for event in heard] == ["MESSAGE_SENT", "CHAT_RENAMED", "CHAT_CHANGED"]
        assert heard[1:] == [("CHAT_RENAMED", FIRST, "New name"), ("CHAT_CHANGED", OTHER)]


async def test_a_renamed_chat_is_followed_by_every_tab(server: ServerProcess) -> None:
    async with (
        connect(server.url) as one, connect(server.url) as other,
        await shown(one) as mine, await shown(other) as theirs,
    ):
        await mine.events_delivered()
        await theirs.events_delivered()
        told, heard = heard_by(mine), heard_by(theirs)
        await mine.update_chat_state("memory", lambda state: {"n": 1})
        await mine.rename_chat(FIRST, "New name.jsonl")
        await settled(mine, theirs)
        assert mine.get_current_chat_id() == theirs.get_current_chat_id() == "New name"
        assert told == heard == [("CHAT_RENAMED", FIRST, "New name")]
        await theirs.add_messages({"mes": "after", "is_user": True})
        await settled(mine, theirs)
        assert mine.chat[-1]["mes"] == "after"
        assert await theirs.get_chat_state("memory") == {"n": 1}

        with pytest.raises(RefusedError, match="exists"):
            await mine.rename_chat("New name", OTHER)
        with pytest.raises(RefusedError, match="name-illegal"):
            await mine.rename_chat("New name", "a/b")
        await mine.rename_chat(OTHER, "Another")
        await mine.events_delivered()
        assert told[-1] == ("CHAT_RENAMED", OTHER, "Another")
        assert mine.get_current_chat_id() == "New name"
        await mine.open_character_chat("Another")


async def test_an_old_name_and_an_id_lead_to_the_chat(server: ServerProcess) -> None:
    async with connect(server.url) as one, await shown(one) as mine:
        await mine.rename_chat(FIRST, "New name")
        chat_id = one.chats[0].chat_id
    async with connect(server.url) as other:
        for address in (f"character:{ALICE}/{FIRST}", f"id:{chat_id}", f"character:{ALICE}/New name"):
            async with await create_context(other, chat=address) as theirs:
                assert theirs.get_current_chat_id() == "New name"
                assert theirs.name2 == ALICE
                await theirs.rename_chat("New name", "Newer name")
                assert theirs.get_current_chat_id() == "Newer name"
                await theirs.rename_chat("Newer name", "New name")


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_tab_that_was_away_learns_what_became_of_its_chat(server: ServerProcess, deleted: bool) -> None:
    async with (
        connect(server.url) as one, connect(server.url) as other,
        await shown(one) as mine, await shown(other) as theirs,
    ):
        await theirs.events_delivered()
        heard = heard_by(theirs)
        connection = other._connection
        assert connection is not None
        assert connection._socket is not None
        connection.url = "ws://127.0.0.1:1/ws"
        connection._socket.transport.abort()
        await until(lambda: other.status != "connected")
        if deleted:
            await mine.delete_character_chat(ALICE, FIRST)
        else:
            await mine.rename_chat(FIRST, "New name")
        connection.url = server.url
        other.reconnect()
        if deleted:
            await until(lambda: theirs.get_current_chat_id() is None)
            await theirs.events_delivered()
            assert heard == [("CHAT_DELETED", FIRST), ("CHAT_CHANGED", None)]
        else:
            await until(lambda: theirs.get_current_chat_id() == "New name")
            await settled(mine, theirs)
            assert heard == [("CHAT_RENAMED", FIRST, "New name")]


async def test_a_new_chat_takes_the_place_of_the_old_one(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        await context.events_delivered()
        heard = heard_by(context)
        await context.do_new_chat()
        one = context.get_current_chat_id()
        await context.do_new_chat()
        two = context.get_current_chat_id()
        await context.do_new_chat(delete_current_chat=True)
        three = context.get_current_chat_id()
        await context.events_delivered()

        assert len({FIRST, one, two, three}) == 4
        assert all(name is not None and name.startswith(f"{ALICE} - 20") for name in (one, two, three))
        names = {chat["file_id"] for chat in await context.get_past_character_chats()}
        assert {FIRST, one, three} <= names
        assert two not in names
        assert heard == [
            ("CHAT_CHANGED", one), ("CHAT_CREATED", one), ("CHAT_CHANGED", two), ("CHAT_CREATED", two),
            ("CHAT_CHANGED", three), ("CHAT_CREATED", three), ("CHAT_DELETED", two),
        ]
        assert context.get_message_count() == 0
        await context.add_messages({"mes": "first"})
        assert client.chats[0].chat_id


async def test_a_chat_deleted_by_another_tab_is_shown_no_more(server: ServerProcess) -> None:
    async with (
        connect(server.url) as one, connect(server.url) as other,
        await shown(one) as mine, await shown(other) as theirs,
    ):
        await theirs.events_delivered()
        told, heard = heard_by(mine), heard_by(theirs)
        await mine.delete_character_chat(ALICE, FIRST + ".jsonl")
        await until(lambda: theirs.get_current_chat_id() is None)
        await mine.events_delivered()
        await theirs.events_delivered()
        assert heard == [("CHAT_DELETED", FIRST), ("CHAT_CHANGED", None)]
        assert told[-2:] == heard
        assert mine.get_current_chat_id() is None
        with pytest.raises(RefusedError, match="not-open"):
            await theirs.add_messages({"mes": "x"})
        await mine.delete_character_chat(f"{ALICE}.png", OTHER)
        await mine.events_delivered()
        assert told[-1] == ("CHAT_DELETED", OTHER)
        with pytest.raises(RefusedError):
            await mine.delete_character_chat(ALICE, "never was")
        assert len(await mine.get_past_character_chats(ALICE)) == 2


async def test_a_branch_is_told_to_every_tab(server: ServerProcess) -> None:
    async with (
        connect(server.url) as one, connect(server.url) as other,
        await shown(one) as mine, await shown(other) as theirs,
    ):
        told: list[list[dict[str, Any]]] = [[], []]
        for context, heard in zip((mine, theirs), told, strict=True):
            context.event_source.on(EventTypes.CHAT_BRANCH_CREATED, heard.append)
        message_id = mine.chat[10]["id"]
        chat = await one.open(f"character:{ALICE}/{FIRST}")
        await chat.branch(message_id, to="My branch")
        await chat.branch(message_id, to="My checkpoint", kind="checkpoint")
        await settled(mine, theirs)
        info = {"index": 10, "message_id": message_id}
        assert told[0] == told[1] == [
            {**info, "branch": "My branch", "kind": "branch"},
            {**info, "branch": "My checkpoint", "kind": "checkpoint"},
        ]
        await theirs.open_character_chat("My branch")
        assert theirs.get_message_count() == 11
        assert theirs.chat_metadata["main_chat"] == FIRST


async def test_a_link_that_follows_a_rename_is_no_branch_and_no_edit(server: ServerProcess) -> None:
    """[J12]: the message is updated, and what it links to reads by its new name."""
    async with connect(server.url) as client, await shown(client) as context:
        message_id = context.chat[10]["id"]
        chat = await client.open(f"character:{ALICE}/{FIRST}")
        point = await chat.branch(message_id, to="My checkpoint", kind="checkpoint")
        await context.events_delivered()
        heard: list[tuple[Any, ...]] = []
        for name in (EventTypes.MESSAGE_UPDATED, EventTypes.MESSAGE_EDITED, EventTypes.CHAT_BRANCH_CREATED):
            context.event_source.on(name, lambda *arguments, name=name: heard.append((name.name, *arguments)))
        await point.rename("Point")
        await until(lambda: context.chat[10]["extra"]["bookmark_link"] == "Point")
        await context.events_delivered()
        assert heard == [("MESSAGE_UPDATED", 10, {"message_id": message_id})]
        await context.open_character_chat("Point")
        assert context.chat_metadata["main_chat"] == FIRST


async def test_reloading_reads_what_others_wrote_one_at_a_time(server: ServerProcess) -> None:
    async with (
        connect(server.url) as one, connect(server.url) as other,
        await shown(one) as mine, await shown(other) as theirs,
    ):
        await mine.events_delivered()
        heard = heard_by(mine)
        for number in range(10):
            await theirs.add_messages({"mes": str(number)})
            await mine.reload_current_chat()
            assert mine.chat[-1]["mes"] == str(number)
        await asyncio.gather(*(mine.reload_current_chat() for _ in range(5)))
        await mine.events_delivered()
        assert heard == [("CHAT_CHANGED", FIRST)] * 15

        mine.set_extension_prompt("a", "text", 1, 0)
        await mine.clear_chat()
        assert dict(mine.extension_prompts) == {}
        assert mine.get_message_count() == 310
        await mine.clear_chat(clear_data=True)
        assert (list(mine.chat), mine.get_message(0), mine.get_message_count()) == ([], None, 0)
        await mine.reload_current_chat()
        assert mine.get_message_count() == 310


async def test_another_programs_edit_is_told_as_a_changed_chat(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        await context.add_messages({"mes": "ours"})
        await context.events_delivered()
        heard = heard_by(context)
        path = server.data / "default-user" / "chats" / ALICE / f"{FIRST}.jsonl"
        await until(lambda: b'"ours"' in path.read_bytes())
        with path.open("ab") as file:
            file.write(b'\n{"name":"Other","is_user":false,"mes":"theirs"}')
        await context.add_messages({"mes": "again"})
        await until(lambda: any(message["mes"] == "theirs" for message in context.chat))
        await context.events_delivered()
        assert ("CHAT_CHANGED", FIRST) in heard


async def test_system_messages_are_stored(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        index = await context.send_system_message("GENERIC", "loaded", {"x": 1})
        message = context.chat[index]
        assert index == 300
        assert message["extra"] == {"x": 1, "type": "generic"}
        assert message["is_system"] is True
        with pytest.raises(ValueError):
            await context.send_system_message("NOPE")
        await context.save_chat()
        assert await context.save_chat_metadata({"note": {"a": 1}}) is True
        assert await context.save_chat_metadata({"note": {"b": None}}) is True
        assert await context.save_chat_metadata() is True
        assert context.chat_metadata["note"] == {"b": None}
        assert json.loads(json.dumps(context.chat_metadata))["note"] == {"b": None}


async def test_deprecated_names_warn_and_work(server: ServerProcess) -> None:
    async with connect(server.url) as client, await shown(client) as context:
        with pytest.warns(DeprecationWarning, match="add_messages") as told:
            assert await asyncio.create_task(context.add_one_message({"mes": "a"}, scroll=True)) == 300
        assert told[0].filename == __file__
        with pytest.warns(DeprecationWarning, match="add_messages"):
            assert await context.append_chat_messages([{"mes": "b"}, {"mes": "c"}]) == [301, 302]
        with pytest.warns(DeprecationWarning, match="update_messages"):
            await context.update_message_block(300, {"mes": "A"})
        with pytest.warns(DeprecationWarning, match="update_messages"):
            await context.patch_chat_messages([{"op": "replace", "path": "/301/mes", "value": "B"}])
        assert [message["mes"] for message in context.chat[300:]] == ["A", "B", "c"]
        with pytest.warns(DeprecationWarning, match="delete_messages"):
            assert (await context.delete_last_message())["mes"] == "c"
        with pytest.warns(DeprecationWarning, match="delete_messages"):
            assert (await context.delete_message(300))["mes"] == "A"
        assert context.get_message_count() == 301


async def test_a_wrong_kind_of_argument_is_a_type_error(server: ServerProcess) -> None:
    """Of the messages to delete, and of a floor state's name, which the seed gives in an object."""
    async with connect(server.url) as client, await shown(client) as context:
        wrong: Any
        for wrong in (1.0, None, [1.0], True, {1.0}):
            with pytest.raises(TypeError, match="a message is named by"):
                await context.delete_messages(wrong)
        assert context.get_message_count() == 300
        floor = await context.create_floor_state({"namespace": " Plot "})
        assert floor.namespace == "plot"
        for wrong in ({}, {"namespace": 1}, None, 7):
            with pytest.raises(TypeError, match="its namespace"):
                await context.create_floor_state(wrong)
