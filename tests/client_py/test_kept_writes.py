"""What an earlier process left in the outbox file of a chat that lived on without it: nothing of it ends nowhere."""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tellback_client import (
    Chat,
    Client,
    ClientClosed,
    ConflictError,
    DeletedError,
    OutboxError,
    RefusedError,
    SessionTakenOver,
    connect,
)
from tellback_client.outbox import Journal
from tellback_protocol.outcomes import OUTCOMES_MAX
from tests.support.server import running
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
MESSAGES = [{"id": "a", "mes": "Hello."}, {"id": "b", "mes": "Well?"}]

Writes = Callable[..., list[Coroutine[Any, Any, object]]]


def replaced(mes: str) -> list[dict[str, str]]:
    return [{"op": "replace", "path": "/mes", "value": mes}]


def texts(chat: Chat) -> list[str]:
    return [message["mes"] for message in chat.messages]


async def keep(client: Client, outbox: Path, writes: int) -> None:
    """The process ends as soon as its file holds so many writes more than were answered."""
    await until(lambda: outbox.read_bytes().count(b'{"add":') - outbox.read_bytes().count(b'{"done":') == writes)
    await client.aclose(flush_timeout_s=0)


async def leave_behind(folder: Path, outbox: Path, writes: Writes, *others: str) -> str:
    """A process asks for these, of the chat and the others, while there is no server, and ends. Returns the chat's id.
    """
    async with running(folder) as app:
        client = connect(app.urls[0], outbox_path=outbox)
        await client.start()
        chat = await client.create_chat(CHAT, messages=MESSAGES)
        await chat.state_get("memory")
        beside = [await client.create_chat(name, messages=MESSAGES) for name in others]
    waiting = [asyncio.create_task(write) for write in writes(chat, *beside)]
    await keep(client, outbox, len(waiting))
    assert all(isinstance(one, ClientClosed) for one in await asyncio.gather(*waiting, return_exceptions=True))
    return chat.chat_id


def session_of(outbox: Path) -> str:
    journal = Journal(outbox, secrets.token_hex)
    journal.close()
    return journal.session


async def use_the_numbers(url: str, outbox: Path, chat_id: str) -> None:
    """The chat goes to the trash; a later process with the session alone brings it back and writes to it."""
    async with connect(url) as other:
        await (await other.open(CHAT)).remove()
    async with connect(url, session=session_of(outbox)) as client:
        chat = await client.restore_chat(chat_id)
        await chat.append({"mes": "of the second life"})


async def test_a_kept_write_whose_number_a_later_life_used_gets_another_number(tmp_path: Path) -> None:
    """[O3] In the order in which they were asked, each once, with what it builds on."""
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [
        chat.append({"id": "k", "mes": "kept"}),
        chat.patch("k", replaced("kept, and changed")),
        chat.patch("b", replaced("Well!")),
        chat.state("memory").set({"n": 1}),
        chat.append({"mes": "and more"}),
    ])
    async with running(tmp_path) as app:
        await use_the_numbers(app.urls[0], outbox, chat_id)
        for _ in range(2):
            # The second time there is nothing left to send.
            async with connect(app.urls[0], outbox_path=outbox) as client:
                chat = await client.open(f"id:{chat_id}")
                await client.saved()
                assert texts(chat) == ["Hello.", "Well!", "of the second life", "kept, and changed", "and more"]
                assert await chat.state_get("memory") == {"n": 1}


async def test_what_builds_on_a_kept_write_is_not_taken_for_building_on_the_other_request(tmp_path: Path) -> None:
    """[O3] The third patch names by its number the second, which is another request's by now: what somebody else wrote
    between would be overwritten without a word.
    """
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [
        chat.patch("a", replaced("mine")), chat.patch("a", replaced("mine 2")), chat.patch("a", replaced("mine 3")),
    ])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).patch("a", replaced("theirs"))
        await use_the_numbers(url, outbox, chat_id)
        for _ in range(2):
            # What nobody decided is there again the next time.
            async with connect(url, outbox_path=outbox) as client:
                chat = await client.open(f"id:{chat_id}")
                await until(lambda chat=chat: chat.pending == 0 and len(chat.conflicts) == 3)
                assert texts(chat) == ["theirs", "Well?", "of the second life"]
        async with connect(url, outbox_path=outbox) as client:
            chat = await client.open(f"id:{chat_id}")
            await until(lambda: len(chat.conflicts) == 3)
            await chat.conflicts[2].apply_mine_again()
            for conflict in chat.conflicts:
                conflict.take_theirs()
            await client.saved()
            assert texts(chat)[0] == "mine 3"


async def test_what_is_kept_for_a_gone_chat_is_sent_as_soon_as_it_is_back(tmp_path: Path) -> None:
    """In the process that restores it, ahead of what that one asks for: the restore took the first one's number."""
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [
        chat.append({"id": "k", "mes": "kept"}), chat.patch("k", replaced("kept, and changed")),
    ])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).remove()
        async with connect(url, outbox_path=outbox) as client:
            with pytest.raises(DeletedError):
                await client.saved()
            chat = await client.restore_chat(chat_id)
            await chat.append({"mes": "of the second life"})
            await client.saved()
            assert texts(chat) == ["Hello.", "Well?", "kept, and changed", "of the second life"]
        async with connect(url, outbox_path=outbox) as client:
            assert client.pending == 0


async def test_who_opens_a_gone_chat_first_does_not_keep_saved_from_telling_what_is_kept_for_it(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [chat.append({"mes": "kept"})])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).remove()
        client = connect(url, outbox_path=outbox, connect_timeout_s=0)
        async with client:
            with pytest.raises(DeletedError):
                await client.open(f"id:{chat_id}")
            with pytest.raises(DeletedError):
                await client.saved()
            await client.saved()
            chat = await client.restore_chat(chat_id)
            await client.saved()
            assert texts(chat) == ["Hello.", "Well?", "kept"]


async def test_a_kept_write_that_is_refused_waits_for_a_person(tmp_path: Path) -> None:
    """Whoever asked for it is gone: an error alone would be told to nobody, and the write would be nowhere."""
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [
        chat.patch("a", replaced("kept")), chat.append({"mes": "fits"}),
    ])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).delete("a")
        for _ in range(2):
            async with connect(url, outbox_path=outbox) as client:
                chat = await client.open(f"id:{chat_id}")
                await until(lambda chat=chat: chat.conflicts and not chat.pending)
                with pytest.raises(ConflictError):
                    await client.saved()
                assert texts(chat) == ["Well?", "fits"]
        async with connect(url, outbox_path=outbox) as client:
            chat = await client.open(f"id:{chat_id}")
            await until(lambda: chat.conflicts)
            chat.conflicts[0].take_theirs()
            await client.saved()


async def test_a_kept_write_whose_outcome_is_forgotten_waits_for_a_person(tmp_path: Path) -> None:
    """[O7] It may be in the chat or not."""
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [chat.append({"mes": "kept"})])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url, session=session_of(outbox)) as client:
            chat = await client.open(CHAT)
            await asyncio.gather(*[chat.state("memory").set({"n": number}) for number in range(OUTCOMES_MAX + 1)])
        async with connect(url, outbox_path=outbox) as client:
            chat = await client.open(f"id:{chat_id}")
            await until(lambda: chat.conflicts)
            assert "no longer kept" in chat.conflicts[0].reason
            await chat.conflicts[0].apply_mine_again()
            await client.saved()
            assert texts(chat) == ["Hello.", "Well?", "kept"]


async def test_a_conflict_of_a_chat_that_is_gone_stays_when_it_cannot_be_asked_again(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [chat.patch("a", replaced("kept"))])
    async with running(tmp_path) as app, connect(app.urls[0]) as other:
        theirs = await other.open(CHAT)
        await theirs.patch("a", replaced("theirs"))
        async with connect(app.urls[0], outbox_path=outbox) as client:
            chat = await client.open(f"id:{chat_id}")
            await until(lambda: chat.conflicts)
            await theirs.remove()
            await until(lambda: chat.subscription.error is not None)
            with pytest.raises(DeletedError):
                await chat.conflicts[0].apply_mine_again()
            assert len(chat.conflicts) == 1
        async with connect(app.urls[0], outbox_path=outbox) as client:
            with pytest.raises(DeletedError):
                await client.saved()
            chat = await client.restore_chat(chat_id)
            await until(lambda: chat.conflicts)
            await chat.conflicts[0].apply_mine_again()
            await client.saved()
            assert texts(chat) == ["kept", "Well?"]


async def test_saved_tells_a_conflict_first_then_what_was_lost_then_what_closed_the_client(tmp_path: Path) -> None:
    """Whatever order the chats were opened in, and although others still wait for their answers."""
    outbox, changed, too = tmp_path / "outbox.jsonl", "group:Changed", "group:Changed, too"
    await leave_behind(tmp_path, outbox, lambda chat, beside, again: [
        chat.append({"mes": "lost"}), beside.patch("a", replaced("mine")), again.patch("a", replaced("mine")),
    ], changed, too)
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).remove()
            for name in (changed, too):
                await (await other.open(name)).patch("a", replaced("theirs"))
        async with connect(url, outbox_path=outbox) as client:
            waiting = await client.open("group:Rest", create=True)
            conflicted, again = await client.open(changed), await client.open(too)
            await until(lambda: conflicted.conflicts and again.conflicts and not client.pending)
            writing = asyncio.create_task(waiting.append({"mes": "later"}))
            await asyncio.sleep(0)
            for chat in (conflicted, again):
                with pytest.raises(ConflictError):
                    await client.saved()
                assert waiting.pending == 1, "a conflict is told at once"
                chat.conflicts[0].take_theirs()
            with pytest.raises(DeletedError):
                await client.saved()
            await client.saved()
            assert (waiting.pending, writing.done()) == (0, True)
            await writing


async def test_saved_tells_a_conflict_before_what_closed_the_client(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.jsonl"
    chat_id = await leave_behind(tmp_path, outbox, lambda chat: [chat.patch("a", replaced("mine"))])
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await (await other.open(CHAT)).patch("a", replaced("theirs"))
        async with connect(url, outbox_path=outbox) as client:
            chat = await client.open(f"id:{chat_id}")
            await until(lambda: chat.conflicts)
            async with connect(url, session=client.session):
                await until(lambda: client.status == "closed")
            with pytest.raises(ConflictError):
                await client.saved()
            chat.conflicts[0].take_theirs()
            with pytest.raises(SessionTakenOver):
                await client.saved()


async def test_a_write_that_nobody_awaits_any_more_is_told_by_saved_when_it_is_refused(tmp_path: Path) -> None:
    """[R20] Its caller gave up waiting; each is told once."""
    async with running(tmp_path) as app, connect(app.urls[0]) as client:
        chat = await client.create_chat(CHAT, messages=MESSAGES)
        writing = [
            asyncio.create_task(write)
            for write in (chat.delete("x"), chat.append({"mes": "stored"}), chat.patch("y", replaced("nowhere")))
        ]
        await asyncio.sleep(0)
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
        await until(lambda: not client.pending)
        for saved in (client.saved, chat.saved):
            with pytest.raises(RefusedError, match="message-unknown"):
                await saved()
        await chat.saved()
        assert texts(chat) == ["Hello.", "Well?", "stored"]


async def leave_states_behind(tmp_path: Path, outbox: Path) -> None:
    """As `leave_behind`, of a character."""
    (tmp_path / "default-user/characters").mkdir(parents=True)
    (tmp_path / "default-user/characters/Alice.png").write_bytes(b"a card")
    async with running(tmp_path) as app:
        client = connect(app.urls[0], outbox_path=outbox)
        await client.start()
        alice = await client.character("Alice")
        await alice.set_state("memory", {"n": 1})
    waiting = [
        asyncio.create_task(write) for write in (alice.set_state("memory", {"n": 2}), alice.set_state("mood", "calm"))
    ]
    await asyncio.gather(*waiting, keep(client, outbox, len(waiting)), return_exceptions=True)


async def test_what_is_kept_for_a_deleted_character_is_sent_when_it_is_back(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.jsonl"
    await leave_states_behind(tmp_path, outbox)
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await other.delete_character("Alice")
        async with connect(url, outbox_path=outbox) as client:
            with pytest.raises(DeletedError):
                await client.saved()
            await client.restore_character("Alice")
            alice = await client.character("Alice")
            await client.saved()
            assert await alice.state_get_many() == {"memory": {"n": 2}, "mood": "calm"}


async def test_what_is_kept_for_a_renamed_character_is_its_own(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.jsonl"
    await leave_states_behind(tmp_path, outbox)
    async with running(tmp_path) as app:
        url = app.urls[0]
        async with connect(url) as other:
            await other.rename_character("Alice", "Alicia")
        async with connect(url, outbox_path=outbox) as client:
            await client.saved()
            alice = await client.character("Alicia")
            assert await alice.state_get_many() == {"memory": {"n": 2}, "mood": "calm"}


async def test_an_outbox_that_cannot_be_written_at_the_end_is_let_go_of_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = tmp_path / "outbox"
    async with running(tmp_path / "data") as app:
        client = connect(app.urls[0], outbox_path=outbox)
        await client.start()

        def full(_journal: Journal, _records: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "write", full)
            with pytest.raises(OutboxError, match="No space left"):
                await client.aclose()
        async with connect(app.urls[0], outbox_path=outbox) as again:
            assert again.status in ("connecting", "connected")
