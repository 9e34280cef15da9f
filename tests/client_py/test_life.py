"""The life of chats through the Python client, against the real server."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tellback_client import (
    BlockingClient,
    ChatDeleted,
    ChatRenamed,
    ClientClosed,
    ConflictError,
    DeletedError,
    Gone,
    ReadOnlyError,
    RefusedError,
    Replaced,
    connect,
)
from tellback_client.outbox import Journal
from tests.support.relay import Relay
from tests.support.server import running
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"


async def test_making_a_chat_is_answered_although_the_first_answer_was_lost(tmp_path: Path) -> None:
    """[O2] The chat is this call's own; made a second time by the same session it exists."""
    async with running(tmp_path) as app, Relay(app.urls[0]) as relay, connect(relay.url) as client:
        relay.lose_next_answer()
        chat = await client.create_chat(CHAT, messages=[{"mes": "Hello."}])
        assert [message["mes"] for message in chat.messages] == ["Hello."]
        with pytest.raises(RefusedError, match="exists"):
            await client.create_chat(CHAT, messages=[{"mes": "Hello."}])


async def test_a_chat_is_made_renamed_branched_removed_and_restored(tmp_path: Path) -> None:
    """[J2] [J4] [J6] [J7]"""
    async with running(tmp_path) as app, connect(app.urls[0]) as one, connect(app.urls[0]) as other:
        chat = await one.create_chat(CHAT, metadata={"mood": "calm"}, messages=[{"mes": "Hello."}])
        assert (chat.metadata, [message["mes"] for message in chat.messages]) == ({"mood": "calm"}, ["Hello."])
        theirs = await other.open(CHAT)
        heard = theirs.events()
        with pytest.raises(RefusedError, match="exists"):
            await other.create_chat(CHAT)
        await asyncio.gather(chat.append({"mes": "one"}), chat.rename("Second"), chat.append({"mes": "two"}))
        assert chat.name == "character:Alice/Second"
        await theirs.append({"mes": "three"})
        assert theirs.name == "character:Alice/Second"
        async for event in heard:
            if isinstance(event, ChatRenamed):
                assert (event.name, event.to) == (CHAT, "character:Alice/Second")
                break
        # An old name leads to the same chat.
        assert await other.open("character:Alice/Second") is theirs
        late = await other.open(CHAT)
        assert late.chat_id == chat.chat_id
        await chat.saved()
        branch = await chat.branch(chat.messages[1]["id"])
        assert [message["mes"] for message in branch.messages] == ["Hello.", "one"]
        assert branch.metadata == {"mood": "calm", "main_chat": "Second"}
        result = await chat.remove()
        assert result.linked_from == [branch.name]
        with pytest.raises(DeletedError):
            await chat.append({"mes": "too late"})
        seen = []
        async for event in heard:
            seen.append(type(event))
            if isinstance(event, Gone):
                break
        assert ChatDeleted in seen
        with pytest.raises(DeletedError) as gone:
            await other.open(f"id:{chat.chat_id}")
        assert gone.value.chat_id == chat.chat_id
        back = await one.restore_chat(chat.chat_id, "Third")
        assert back.chat_id == chat.chat_id
        assert [message["mes"] for message in back.messages] == ["Hello.", "one", "two", "three"]
        with pytest.raises(RefusedError, match="not in the trash"):
            await one.restore_chat(chat.chat_id)
        assert (await back.append({"mes": "four"})).version.seq > result.version.seq
        assert (await other.open("character:Alice/Third")).chat_id == chat.chat_id


async def test_what_is_gone_does_not_keep_the_client_from_telling_that_the_rest_is_saved(tmp_path: Path) -> None:
    async with running(tmp_path) as app, connect(app.urls[0]) as one, connect(app.urls[0]) as other:
        chat, rest = await one.create_chat(CHAT), await one.open("group:Rest", create=True)
        theirs = await other.open(CHAT)
        await theirs.append({"mes": "stored"})
        await until(lambda: chat.messages)
        removing = asyncio.create_task(chat.remove())
        await asyncio.sleep(0)
        assert one.pending == 1
        await one.saved()
        await removing
        await until(lambda: theirs.status == "offline")
        for client in (one, other):
            await client.saved()
        # Who asks about it alone hears what became of it.
        for gone in (chat, theirs):
            with pytest.raises(DeletedError):
                await gone.saved()
        writing = asyncio.create_task(rest.append({"mes": "later"}))
        await asyncio.sleep(0)
        assert one.pending == 1
        await one.saved()
        assert (one.pending, writing.done()) == (0, True)
        await writing
    with pytest.raises(ClientClosed):
        await one.saved()


async def test_closing_a_chat_that_is_gone_lets_go_of_it(tmp_path: Path) -> None:
    outboxes = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    async with running(tmp_path) as app:
        (at,) = app.urls
        async with connect(at, outbox_path=outboxes[0]) as one, connect(at, outbox_path=outboxes[1]) as other:
            mine = await one.create_chat(CHAT, messages=[{"id": "a", "mes": "Hello."}])
            theirs = await other.open(CHAT)
            faster = [
                chat.patch("a", [{"op": "replace", "path": "/mes", "value": word}])
                for chat, word in ((mine, "mine"), (theirs, "theirs"))
            ]
            outcomes = await asyncio.gather(*faster, return_exceptions=True)
            loser, winner = (mine, theirs) if isinstance(outcomes[0], ConflictError) else (theirs, mine)
            await winner.remove(force=True)
            await until(lambda: loser.subscription.error is not None)
            # What waits for a decision is not let go of.
            with pytest.raises(ConflictError):
                await loser.close()
            loser.conflicts[0].take_theirs()
            for chat in (loser, winner, loser):
                await chat.close()
            assert one.chats == other.chats == []
            await one.saved()
            with pytest.raises(DeletedError):
                await mine.saved()
        # The decision is in the outbox file, too.
        for outbox in outboxes:
            journal = Journal(outbox, secrets.token_hex)
            journal.close()
            assert journal.entries == []


async def test_writes_that_were_lost_with_a_chat_are_told_once(tmp_path: Path) -> None:
    """An earlier process left a write in the outbox file; the chat is in the trash by the time it is sent."""
    outbox = tmp_path / "outbox.jsonl"
    async with AsyncExitStack() as stack:
        async with running(tmp_path) as app:
            client = await stack.enter_async_context(connect(app.urls[0], outbox_path=outbox))
            chat = await client.create_chat(CHAT)
        writing = asyncio.create_task(chat.append({"mes": "left behind"}))
        await until(lambda: b"left behind" in outbox.read_bytes())
        await client.aclose(flush_timeout_s=0)
        with pytest.raises(ClientClosed):
            await writing
    async with running(tmp_path) as app:
        async with connect(app.urls[0]) as other:
            await (await other.open(CHAT)).remove()
        async with connect(app.urls[0], outbox_path=outbox) as client:
            rest = await client.open("group:Rest", create=True)
            await until(lambda: client.pending == 0)
            with pytest.raises(DeletedError):
                await client.saved()
            await rest.append({"mes": "stored"})
            await client.saved()


async def test_characters_and_presets_are_renamed_deleted_and_restored(tmp_path: Path) -> None:
    """[J10] [J11]"""
    root = tmp_path / "default-user"
    for folder in ("characters", "OpenAI Settings"):
        (root / folder).mkdir(parents=True)
    (root / "characters/Alice.png").write_bytes(b"a card")
    (root / "OpenAI Settings/Default.json").write_text("{}")
    async with running(tmp_path) as app, connect(app.urls[0]) as one, connect(app.urls[0]) as other:
        chat = await other.create_chat(CHAT, messages=[{"mes": "Hello."}])
        alice = await other.character("Alice")
        await alice.set_state("memory", {"a": 1})
        await one.rename_character("Alice", "Alicia")
        await chat.append({"mes": "one"})
        assert chat.name == "character:Alicia/First meeting"
        assert alice.name == "character:Alicia"
        await alice.set_state("memory", {"a": 2})
        await one.delete_character("Alicia", chats=True)
        with pytest.raises(DeletedError):
            await chat.append({"mes": "too late"})
        await one.restore_character("Alicia")
        again = await one.open("character:Alicia/First meeting")
        assert [message["mes"] for message in again.messages] == ["Hello.", "one"]
        assert await (await one.character("Alicia")).state_get("memory") == {"a": 2}
        await one.rename_preset("OpenAI Settings/Default", "Mine")
        await one.delete_preset("OpenAI Settings/Mine")
        await one.restore_preset("OpenAI Settings/Mine")
        assert (root / "OpenAI Settings/Mine.json").read_text() == "{}"


async def test_backups_are_taken_looked_into_and_restored(tmp_path: Path) -> None:
    """[Z7] [Z9] [Z11]: whoever has the chat open sees the backup's content, and what is written goes on from there."""
    async with running(tmp_path) as app, connect(app.urls[0]) as one, connect(app.urls[0]) as other:
        chat = await one.create_chat(CHAT, messages=[{"mes": "Hello."}])
        await chat.set_state("memory", {"n": 1})
        taken = await one.back_up(CHAT)
        theirs = await other.open(CHAT)
        events = theirs.events()
        await theirs.append({"mes": "later"})
        await chat.set_state("memory", {"n": 2})
        await until(lambda: len(chat.messages) == 2)

        result = await chat.restore_backup(taken.backup)

        # When it returns the chat is the backup.
        assert [message["mes"] for message in chat.messages] == ["Hello."]
        assert await chat.state_get("memory") == {"n": 1}
        assert chat.version.epoch == 2
        assert result.version.seq == chat.version.seq
        assert (chat.pending, chat.conflicts, chat.status) == (0, [], "synced")
        await until(lambda: [message["mes"] for message in theirs.messages] == ["Hello."])
        seen = []
        while not any(isinstance(event, Replaced) for event in seen):
            seen.append(await asyncio.wait_for(anext(events), GUARD_S))
        assert [event.reason for event in seen if isinstance(event, Replaced)] == ["restored"]
        await theirs.append({"mes": "and on"})
        await chat.append({"mes": "from here"})
        await until(lambda: len(theirs.messages) == 3)

        before = (await one.backups(CHAT))[0]
        assert before.reason == "restore"
        content = await one.backup_content(f"id:{chat.chat_id}", before.backup)
        assert [message["mes"] for message in content.messages] == ["Hello.", "later"]
        assert content.states == {"memory": {"n": 2}}
        beside = await chat.restore_backup_as(before.backup, "as it was")
        assert [message["mes"] for message in beside.messages] == ["Hello.", "later"]
        with pytest.raises(RefusedError, match="no backup"):
            await chat.restore_backup("1-1")

        await chat.remove()
        [entry] = await one.trash()
        assert (entry.name, await one.empty_trash([entry.entry])) == (CHAT, [entry.entry])
        with pytest.raises(RefusedError, match=r"not-found|not hold"):
            await one.restore_chat(chat.chat_id)
        back = await one.restore_deleted(chat.chat_id, "last")
        assert back.chat_id == chat.chat_id
        assert {row.chat_id for row in await one.backed_up_chats()} == {chat.chat_id}


def test_the_waiting_client_has_the_same_verbs(tmp_path: Path) -> None:
    async def serve() -> None:
        async with running(tmp_path) as app:
            url = app.urls[0]

            def work() -> None:
                with BlockingClient(url) as client:
                    chat = client.create_chat(CHAT, messages=[{"mes": "Hello."}])
                    branch = chat.branch(chat.messages[0]["id"], kind="checkpoint")
                    assert branch.metadata["main_chat"] == "First meeting"
                    branch.rename("Kept")
                    chat.remove()
                    assert client.restore_chat(chat.chat_id).chat_id == chat.chat_id

            await asyncio.to_thread(work)

    asyncio.run(serve())


async def test_a_damaged_chat_takes_no_message_and_is_restored_from_its_backup(tmp_path: Path) -> None:
    """[Z7] Whoever finds lines that cannot be read goes back to what was whole; a rename is taken meanwhile."""
    path = tmp_path / "chats" / "Alice" / "First meeting.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"chat_metadata":{}}\n{"id":"a","mes":"Hello."}')
    async with running(tmp_path) as app, connect(app.urls[0]) as client:
        chat = await client.open(CHAT)
        await client.back_up(f"id:{chat.chat_id}")
        path.write_bytes(path.read_bytes() + b'\n{"id":"b","mes":"half a l')
        async with connect(app.urls[0]) as late:
            damaged = await late.open(CHAT)
            assert damaged.status == "read-only"
            with pytest.raises(ReadOnlyError):
                await damaged.append({"mes": "not taken"})
            await damaged.rename("Second")
            await damaged.restore_backup("last")
            await until(lambda: damaged.status == "synced")
            assert [message["mes"] for message in damaged.messages] == ["Hello."]
            await damaged.append({"mes": "taken"})
