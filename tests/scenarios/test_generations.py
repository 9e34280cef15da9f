"""Generations over real sockets: text live, late and lost, and what is left of it when somebody dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol import codec
from tellback_server.app import App
from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST
from tests.support.server import TabClient, new_session, running, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
REPLY = {"name": "Alice", "is_user": False}
USER = {"name": "User", "is_user": True, "mes": "And then?"}
Frame = dict[str, Any]


async def start(tab: TabClient, generation: str = "g1", chat: str = CHAT, **fields: Any) -> Frame:
    """Begin a generation; the ack."""
    given: Frame = {"base": "*", "generation": generation, "messages": [USER], "reply": REPLY, **fields}
    if "target" in fields:
        del given["messages"]
    return await tab.write("generation-start", chat, **given)


async def delta(tab: TabClient, offset: int, text: str, generation: str = "g1", chat: str = CHAT, **more: Any) -> None:
    frame = {"type": "generation-delta", "chat": chat, "generation": generation, "offset": offset, "text": text}
    await tab.raw.send({**frame, **more})


async def end(tab: TabClient, generation: str = "g1", chat: str = CHAT, **fields: Any) -> Frame:
    return await tab.write("generation-end", chat, generation=generation, **fields)


async def durable(tab: TabClient, units: int, generation: str = "g1") -> None:
    """Wait until the producer was told that this much is durable."""
    while (await tab.raw.receive_until(type="generation-delta", generation=generation))["durable"] < units:
        pass


class Listener:
    """What a tab knows of one generation from the frames it was sent."""

    def __init__(self, tab: TabClient, text: str = "") -> None:
        self.tab = tab
        self.text = text
        self.reasoning = ""
        self.frames = 0
        self.durable = 0
        self.over: Frame | None = None

    async def hear(self, generation: str = "g1") -> Listener:
        """Take frames until the generation ended."""
        while self.over is None:
            frame = await self.tab.raw.receive()
            if frame.get("generation") == generation:
                self.take(frame)
        return self

    async def until(self, length: int, generation: str = "g1") -> Listener:
        while len(self.text) < length:
            frame = await self.tab.raw.receive()
            if frame.get("generation") == generation:
                self.take(frame)
        return self

    def take(self, frame: Frame) -> None:
        codec.decode_server(json.dumps(frame).encode())
        match frame["type"]:
            case "generation-started":
                self.text = frame["text"]
            case "generation-delta":
                assert frame["offset"] == len(self.text.encode("utf-16-le")) // 2
                self.text += frame["text"]
                if "reasoning" in frame:
                    assert frame["reasoning_offset"] == len(self.reasoning)
                    self.reasoning += frame["reasoning"]
                self.frames += 1
                assert frame["durable"] >= self.durable
                self.durable = frame["durable"]
            case "generation-stored" | "generation-done":
                self.over = frame


@contextlib.asynccontextmanager
async def two(data: Path, **settings: Any) -> AsyncIterator[tuple[App, TabClient, TabClient]]:
    """A server, and two tabs that have the chat open."""
    async with running(data, **settings) as app:
        producer, watcher = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        await producer.open(CHAT, create=True)
        await watcher.open(CHAT)
        yield app, producer, watcher


async def messages(tab: TabClient, chat: str = CHAT) -> list[Frame]:
    await tab.ask("close", chat=chat)
    opened = await tab.open(chat)
    found: list[Frame] = opened["messages"]
    return found


async def test_a_reply_is_heard_as_it_is_written_and_told_when_it_is_stored(tmp_path: Path) -> None:
    """[T1, T7, T10, T16, R29]"""
    async with two(tmp_path) as (_app, producer, watcher):
        ack = await start(producer)
        turn = await watcher.raw.receive_until(type="integrity")
        assert [effect["op"] for effect in turn["ops"]] == ["append", "state"]
        started = await watcher.raw.receive_until(type="generation-started")
        assert (started["message"], started["by"], started["text"]) == (ack["message"], producer.session, "")
        await delta(producer, 0, "Once ", reasoning="hm")
        await delta(producer, 5, "upon \U0001f600", reasoning_offset=2, reasoning="!")
        listener = await Listener(watcher).until(11)
        assert (listener.text, listener.reasoning) == ("Once upon \U0001f600", "hm!")
        ended = await end(producer, length=12)
        assert ended["message"] == ack["message"]
        told = await watcher.raw.receive_until(type="integrity")
        assert told["ops"][0]["messages"][0]["mes"] == "Once upon \U0001f600"
        stored = await watcher.raw.receive_until(type="generation-stored")
        assert stored == {
            "type": "generation-stored", "chat": CHAT, "generation": "g1", "message": ack["message"],
            "state": "stored", "version": ended["version"],
        }
        assert (await producer.raw.receive_until(type="generation-stored"))["version"] == ended["version"]
        reply = (await messages(watcher))[-1]
        assert (reply["mes"], reply["extra"]["reasoning"]) == ("Once upon \U0001f600", "hm!")
        assert reply["gen_started"] <= reply["gen_finished"] == reply["send_date"]


async def test_the_users_turn_is_durable_before_the_reply_begins(tmp_path: Path) -> None:
    """[T1, R29] kill -9 right behind the ack."""
    async with ForkedServer(tmp_path / "data") as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        ack = await start(tab)
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url, tab.session)
        opened = await tab.open(CHAT)
        assert texts(opened["messages"]) == ["And then?"]
        (listed,) = opened["generations"]
        assert (listed["state"], listed["message"], listed["text"]) == ("running", ack["message"], "")


async def test_whoever_comes_late_or_again_gets_the_text_so_far_and_then_what_comes(tmp_path: Path) -> None:
    """[T13, R10] By opening, by opening again, and by attaching; nothing is missing and nothing comes twice."""
    async with two(tmp_path) as (app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "one ")
        await Listener(watcher).until(4)
        late = await TabClient.join(app.urls[0])
        opened = await late.open(CHAT)
        (listed,) = opened["generations"]
        assert (listed["text"], listed["offset"], listed["state"]) == ("one ", 4, "running")
        listener = Listener(late, listed["text"])
        await delta(producer, 4, "two ")
        await listener.until(8)
        again = await Listener(watcher, "one ").until(8)
        attached = await watcher.ask("generation-attach", chat=CHAT, generation="g1")
        assert (attached["type"], attached["text"], attached["offset"]) == ("generation-started", "one two ", 8)
        await delta(producer, 8, "three")
        await end(producer)
        for heard in (await listener.hear(), await again.hear()):
            assert heard.text == "one two three"
        assert (await late.ask("generation-attach", chat=CHAT, generation="g1"))["code"] == "generation-ended"
        assert (await late.ask("generation-attach", chat=CHAT, generation="g9"))["code"] == "generation-unknown"
        closed = await TabClient.join(app.urls[0])
        assert (await closed.ask("generation-attach", chat=CHAT, generation="g1"))["code"] == "not-open"


async def test_a_gap_is_told_and_filled_and_never_skipped(tmp_path: Path) -> None:
    """[T5, T6, R40]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "a\U0001f600")
        await delta(producer, 9, "later", id=7)
        gap = await producer.raw.receive_until(type="error")
        assert (gap["code"], gap["expected"], gap["generation"], gap["id"]) == ("generation-gap", 3, "g1", 7)
        await delta(producer, 2, "x")
        assert (await producer.raw.receive_until(type="error"))["code"] == "bad-offset"
        await delta(producer, 0, "b")
        assert (await producer.raw.receive_until(type="error"))["code"] == "generation-mismatch"
        await delta(producer, 0, "x", "g9")
        assert (await producer.raw.receive_until(type="error"))["code"] == "generation-unknown"
        await delta(watcher, 3, "mine")
        assert (await watcher.raw.receive_until(type="error"))["code"] == "not-producer"
        await delta(producer, 0, "a\U0001f600bcd")
        assert (await end(producer, length=20))["expected"] == 6
        assert (await end(producer, length=6))["type"] == "ack"
        assert (await messages(watcher))[-1]["mes"] == "a\U0001f600bcd"


async def test_any_tab_stops_a_reply_and_its_producer_is_told(tmp_path: Path) -> None:
    """[T8, T16, R11]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "some")
        await Listener(watcher).until(4)
        stopped = await watcher.write("generation-cancel", CHAT, generation="g1")
        assert (stopped["type"], stopped["state"], stopped["stored"]) == ("ack", "cancelled", True)
        assert (await producer.raw.receive_until(type="generation-stored"))["state"] == "cancelled"
        await delta(producer, 4, " more")
        late = await producer.raw.receive_until(type="error")
        assert (late["code"], late["state"]) == ("generation-ended", "cancelled")
        assert (await end(producer))["code"] == "generation-ended"
        assert texts(await messages(watcher)) == ["And then?", "some"]


async def test_a_producer_that_has_the_chat_not_open_is_told_as_well(tmp_path: Path) -> None:
    """[T16]"""
    async with two(tmp_path) as (app, _producer, watcher):
        worker = await TabClient.join(app.urls[0])
        await start(worker)
        await delta(worker, 0, "text")
        await durable(worker, 4)
        await watcher.write("generation-cancel", CHAT, generation="g1")
        assert (await worker.raw.receive_until(type="generation-stored"))["state"] == "cancelled"


async def left_behind(producer: TabClient, watcher: TabClient) -> None:
    """A reply of which "half of a sen" was heard when its producer went away without a word."""
    await start(producer)
    await delta(producer, 0, "half of a sen")
    await Listener(watcher).until(13)
    producer.raw.abort()


async def test_a_reply_without_text_ends_without_a_message(tmp_path: Path) -> None:
    """[T8, T16]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await end(producer, error={"code": "503", "message": "The model is busy."})
        done = await watcher.raw.receive_until(type="generation-done")
        assert (done["state"], done["error"]["code"]) == ("failed", "503")
        assert len(await messages(watcher)) == 1


async def test_a_producer_that_comes_back_goes_on(tmp_path: Path) -> None:
    """[T20] It opens the chat and learns how much of its text is here; its lease would be over long ago."""
    async with two(tmp_path, generation_lease_s=1.5) as (app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "before")
        await Listener(watcher).until(6)
        producer.raw.abort()
        back = await TabClient.join(app.urls[0], producer.session)
        opened = await back.open(CHAT)
        assert opened["generations"][0]["offset"] == 6
        await back.ask("generation-attach", chat=CHAT, generation="g1")
        await asyncio.sleep(2)
        await delta(back, 6, " and after")
        await end(back, length=16)
        assert (await Listener(watcher, "before").hear()).text == "before and after"


async def test_a_page_that_was_loaded_again_and_does_not_go_on_leaves_its_text_within_the_lease(tmp_path: Path) -> None:
    """[T9, T20, R13] The same session opens the chat, and knows nothing of what it wrote before."""
    async with two(tmp_path, generation_lease_s=0.6) as (app, producer, watcher):
        await left_behind(producer, watcher)
        back = await TabClient.join(app.urls[0], producer.session)
        await back.open(CHAT)
        stored = await watcher.raw.receive_until(type="generation-stored")
        assert stored["state"] == "orphaned"
        assert (await messages(watcher))[-1]["mes"] == "half of a sen"


async def test_a_producer_that_is_gone_leaves_its_text_within_the_lease(tmp_path: Path) -> None:
    """[T9, R13]"""
    async with two(tmp_path, generation_lease_s=0.3) as (app, producer, watcher):
        await left_behind(producer, watcher)
        stored = await watcher.raw.receive_until(type="generation-stored")
        assert stored["state"] == "orphaned"
        reply = (await messages(watcher))[-1]
        assert (reply["mes"], reply["id"]) == ("half of a sen", stored["message"])
        # The session that began it is offered the result until it says that it has it.
        back = await TabClient.join(app.urls[0], producer.session)
        (offered,) = (await back.open(CHAT))["generations"]
        assert (offered["state"], offered["message"], offered["stored"]) == ("orphaned", reply["id"], True)
        assert (await start(back, "g2", supersedes="g1"))["type"] == "ack"


async def test_a_producer_that_says_nothing_is_gone_although_connected(tmp_path: Path) -> None:
    """[T9, R13]"""
    async with two(tmp_path, generation_silence_s=1, generation_lease_s=0.3) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "tick")
        assert (await watcher.raw.receive_until(type="generation-stored"))["state"] == "orphaned"
        assert (await producer.raw.receive_until(type="generation-stored"))["state"] == "orphaned"


async def test_a_resumed_turn_begins_a_message_of_its_own(tmp_path: Path) -> None:
    """[T3, R9] What another tab appended meanwhile stands where it was, and nothing is merged."""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "first")
        await watcher.append(CHAT, "a turn of another tab")
        await end(producer)
        await start(producer, "g2")
        await delta(producer, 0, "second", "g2")
        await end(producer, "g2")
        assert texts(await messages(watcher)) == [
            "And then?", "first", "a turn of another tab", "And then?", "second",
        ]


async def test_a_start_that_comes_again_after_a_restart_begins_no_second_generation(tmp_path: Path) -> None:
    """[T1, R12]"""
    async with ForkedServer(tmp_path / "data") as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        ack = await start(tab)
        await delta(tab, 0, "text")
        await durable(tab, 4)
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url, tab.session)
        opened = await tab.open(CHAT)
        tab.ops[CHAT] -= 1
        again = await start(tab)
        assert again.pop("duplicate")
        assert {**again, "id": 0} == {**ack, "id": 0}
        assert opened["generations"][0]["text"] == "text"
        assert len((await tab.open(CHAT))["generations"]) == 1


async def test_a_result_is_offered_until_it_is_acknowledged(tmp_path: Path) -> None:
    """[T14, T15, R14]"""
    async with two(tmp_path) as (app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "text")
        ended = await end(producer)
        integrity = ended["version"]["integrity"]
        (offered,) = (await producer.open(CHAT))["generations"]
        assert (offered["state"], offered["integrity"]) == ("stored", integrity)
        assert (await watcher.open(CHAT))["generations"] == []
        wrong = {"type": "generation-ack", "chat": CHAT, "generation": "g1", "integrity": integrity[::-1]}
        await producer.raw.send(wrong)
        assert (await producer.raw.receive_until(type="error"))["code"] == "version-unknown"
        for tab in (producer, watcher):
            await tab.raw.send({**wrong, "integrity": integrity})
        told = await watcher.raw.receive_until(type="integrity", previous=integrity)
        (change,) = told["ops"][0]["patch"]
        assert sorted(change["value"]["acked"]) == sorted([producer.session, watcher.session])
        assert (await producer.open(CHAT))["generations"] == []
        await producer.raw.send({"type": "generation-ack", "chat": CHAT, "generation": "g9", "integrity": integrity})
        assert (await producer.raw.receive_until(type="error"))["code"] == "generation-unknown"
        again = await TabClient.join(app.urls[0], producer.session)
        assert (await again.open(CHAT))["generations"] == []


async def test_text_survives_kill_9_up_to_what_was_told_durable_and_the_tab_gives_back_the_rest(tmp_path: Path) -> None:
    """[T11, T17, R10]"""
    async with ForkedServer(tmp_path / "data") as server:
        producer, watcher = await TabClient.join(server.url), await TabClient.join(server.url)
        await producer.open(CHAT, create=True)
        await watcher.open(CHAT)
        await start(producer)
        await delta(producer, 0, "durable \U0001f600 ")
        await durable(producer, 11)
        await delta(producer, 11, "and not")
        await Listener(watcher).until(17)
        await server.kill()
        await server.start()
        back = await TabClient.join(server.url)
        (listed,) = (await back.open(CHAT))["generations"]
        assert (listed["state"], listed["durable"]) == ("running", listed["offset"])
        whole = "durable \U0001f600 and not"
        assert whole.startswith(listed["text"])
        assert listed["offset"] >= 11
        text = {"offset": 8, "text": "\U0001f600 and not", "prefix_sha256": hashlib.sha256(b"durable ").hexdigest()}
        wrong = {**text, "prefix_sha256": "0" * 64}
        refused = await back.ask("generation-attach", chat=CHAT, generation="g1", salvage=wrong)
        assert refused["code"] == "generation-mismatch"
        refused = await back.ask("generation-attach", chat=CHAT, generation="g1", salvage={**text, "offset": 9})
        assert refused["code"] == "bad-offset"
        refused = await back.ask("generation-attach", chat=CHAT, generation="g1", salvage={**text, "offset": 99})
        assert refused["code"] == "generation-gap"
        text |= {"reasoning": "why", "reasoning_prefix_sha256": hashlib.sha256(b"").hexdigest()}
        attached = await back.ask("generation-attach", chat=CHAT, generation="g1", salvage=text)
        assert (attached["text"], attached["offset"], attached["reasoning"]) == (whole, 18, "why")
        again = await TabClient.join(server.url, producer.session)
        assert (await again.open(CHAT))["generations"][0]["text"] == whole
        await delta(again, 11, "and not lost")
        await end(again, length=23)
        assert (await messages(back))[-1]["mes"] == "durable \U0001f600 and not lost"


async def test_a_generation_whose_producer_and_server_both_died_is_ended_by_the_next_start(tmp_path: Path) -> None:
    """[T9, R13] Nobody opens the chat: its status is right all the same."""
    async with ForkedServer(tmp_path / "data", generation_lease_s=0.4, checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await start(tab)
        await delta(tab, 0, "left behind")
        await durable(tab, 11)
        await server.kill()
        await server.start()
        document = (tmp_path / "data/default-user/chats/Alice/First meeting.luker-state.tellback_generations.json")
        await until(lambda: document.exists() and b'"orphaned"' in document.read_bytes())
        await server.stop()
        await server.start()
        opened = await (await TabClient.join(server.url, tab.session)).open(CHAT)
        assert texts(opened["messages"]) == ["And then?", "left behind"]
        assert [one["state"] for one in opened["generations"]] == ["orphaned"]


async def test_stop_works_after_a_restart_of_the_server(tmp_path: Path) -> None:
    """[T8, R11]"""
    async with ForkedServer(tmp_path / "data") as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await start(tab)
        await delta(tab, 0, "so far")
        await durable(tab, 6)
        await server.kill()
        await server.start()
        other = await TabClient.join(server.url)
        await other.open(CHAT)
        assert (await other.write("generation-cancel", CHAT, generation="g1"))["state"] == "cancelled"
        assert texts(await messages(other)) == ["And then?", "so far"]


async def test_a_server_that_is_stopped_keeps_every_character(tmp_path: Path) -> None:
    """[T11]"""
    async with ForkedServer(tmp_path / "data") as server:
        producer, watcher = await TabClient.join(server.url), await TabClient.join(server.url)
        await producer.open(CHAT, create=True)
        await watcher.open(CHAT)
        await start(producer)
        for index in range(500):
            await delta(producer, index, "x")
        await Listener(watcher).until(500)
        assert await server.stop() == 0
        await server.start()
        (listed,) = (await (await TabClient.join(server.url)).open(CHAT))["generations"]
        assert listed["text"] == "x" * 500


async def test_a_users_generations_are_limited_and_nobody_elses_end_for_them(tmp_path: Path) -> None:
    """[T18]"""
    async with two(tmp_path, generations_max=2, generation_bytes_max=2048) as (app, producer, watcher):
        await start(producer, "g1")
        await start(watcher, "g2")
        refused = await start(producer, "g3")
        assert (refused["code"], refused["retry"]) == ("overloaded", "backoff")
        await delta(producer, 0, "x" * 2000)
        await delta(watcher, 0, "y" * 100, "g2")
        assert (await watcher.raw.receive_until(type="error"))["code"] == "overloaded"
        await end(producer)
        await delta(watcher, 0, "y" * 100, "g2")
        assert (await start(producer, "g3"))["type"] == "ack"
        assert (await end(watcher, "g2", length=100))["type"] == "ack"
        assert app.counters.generations_ended == {"stored": 2}


async def test_a_tab_that_reads_slowly_gets_all_of_the_text_in_fewer_frames_and_holds_up_nobody(tmp_path: Path) -> None:
    """[T12]"""
    async with two(tmp_path) as (app, producer, watcher):
        slow = await TabClient.join(app.urls[0])
        await slow.open(CHAT)
        await start(producer)
        await slow.raw.receive_until(type="generation-started")
        slow.raw.connection.transport.pause_reading()
        size = 20_000
        count = 300
        quick = Listener(watcher)
        listening = asyncio.create_task(quick.until(count * size))
        for index in range(count):
            await delta(producer, index * size, chr(97 + index % 26) * size)
        await durable(producer, count * size)
        text = "".join(chr(97 + index % 26) * size for index in range(count))
        await listening
        assert quick.text == text
        waiting = [tab.outbox.waiting_bytes for tab in app._hub.tabs]
        assert max(waiting) < 100_000
        slow.raw.connection.transport.resume_reading()
        late = Listener(slow)
        await late.until(len(text))
        assert late.text == text
        assert late.frames < count
        await end(producer, length=len(text))
        assert (await quick.hear()).over is not None


async def test_a_storm_of_deltas_is_exact_in_every_tab_and_other_chats_go_on(tmp_path: Path) -> None:
    """[T10, T12] Twenty generations at once, one character at a time, sent twice and out of order now and then."""
    async with running(tmp_path) as app:
        url = app.urls[0]
        chats = [f"character:Alice/Chat {number}" for number in range(20)]
        producer = await TabClient.join(url)
        watchers = [await TabClient.join(url) for _ in range(3)]
        for chat in chats:
            await producer.open(chat, create=True)
            for watcher in watchers:
                await watcher.open(chat)
            await start(producer, "g", chat)
        text = "".join(chr(97 + index * 7 % 26) for index in range(200))
        heard: list[dict[str, str]] = [{} for _ in watchers]

        async def listen(watcher: TabClient, known: dict[str, str]) -> None:
            over = 0
            while over < len(chats):
                frame = await watcher.raw.receive()
                if frame["type"] == "generation-delta":
                    assert frame["offset"] == len(known.get(frame["chat"], ""))
                    known[frame["chat"]] = known.get(frame["chat"], "") + frame["text"]
                elif frame["type"] == "integrity" and frame["ops"][0]["op"] in ("append", "insert"):
                    reply = frame["ops"][0]["messages"][0]
                    if reply.get("name") == "Alice":
                        assert reply["mes"] == text
                        over += 1

        listening = [asyncio.create_task(listen(*pair)) for pair in zip(watchers, heard, strict=True)]
        for index, token in enumerate(text):
            for chat in chats:
                await delta(producer, index, token, "g", chat)
                if index % 9 == 0:
                    await delta(producer, index, token, "g", chat)
        for chat in chats:
            assert (await end(producer, "g", chat, length=len(text)))["type"] == "ack"
        await asyncio.gather(*listening)
        for known in heard:
            assert all(text.startswith(found) for found in known.values())


async def test_a_reply_as_a_swipe_and_as_a_continuation(tmp_path: Path) -> None:
    """[T3]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "one")
        message = (await end(producer))["message"]
        await start(producer, "g2", target={"kind": "swipe", "message": message}, supersedes="g1")
        await delta(producer, 0, "two", "g2")
        await end(producer, "g2")
        stored = await watcher.raw.receive_until(type="generation-stored", generation="g2")
        assert (stored["swipe"], stored["message"]) == (1, message)
        await start(producer, "g3", target={"kind": "continue", "message": message})
        await delta(producer, 0, " three", "g3")
        await end(producer, "g3")
        reply = (await messages(watcher))[-1]
        assert (reply["mes"], reply["swipes"]) == ("two three", ["one", "two three"])


async def test_a_chat_that_is_deleted_takes_its_reply_to_the_trash_and_back(tmp_path: Path) -> None:
    """[T24] The tabs hear that it ended before they hear that the chat is gone."""
    async with two(tmp_path) as (_app, producer, watcher):
        ack = await start(producer)
        await delta(producer, 0, "in the trash")
        await Listener(watcher).until(12)
        chat_id = (await producer.open(CHAT))["chat_id"]
        stale = await watcher.write("chat-delete", CHAT, base="00000000-0000-4000-8000-00000000ffff")
        assert stale["type"] == "conflict"
        assert (await producer.open(CHAT))["generations"][0]["state"] == "running", "a refusal ends nothing"
        deleted = await watcher.write("chat-delete", CHAT, base=ack["version"]["integrity"])
        assert deleted["type"] == "ack"
        assert (await producer.raw.receive_until(type="generation-stored"))["state"] == "cancelled"
        gone = await producer.raw.receive_until(type="integrity", version=deleted["version"])
        assert gone["ops"] == [{"op": "deleted"}]
        (trashed,) = (tmp_path / "default-user").glob("trash/*/**/First meeting.jsonl")
        assert b"in the trash" in trashed.read_bytes()
        await delta(producer, 12, " more")
        assert (await producer.raw.receive_until(type="error"))["code"] in ("deleted", "not-found")
        again = await watcher.ask("chat-delete", chat=CHAT, op=2, base=ack["version"]["integrity"])
        assert (again["version"], again["duplicate"]) == (deleted["version"], True)
        assert (await watcher.ask("chat-restore", chat=f"id:{chat_id}", op=3))["type"] == "ack"
        assert texts((await producer.open(CHAT))["messages"]) == ["And then?", "in the trash"]


async def test_a_character_that_is_deleted_takes_the_replies_of_its_chats_along(tmp_path: Path) -> None:
    """[T24]"""
    async with two(tmp_path) as (_app, producer, watcher):
        card = tmp_path / "default-user/characters/Alice.png"
        card.parent.mkdir(parents=True, exist_ok=True)
        card.write_bytes(b"a picture")
        await start(producer)
        await delta(producer, 0, "in the trash")
        await Listener(watcher).until(12)
        owner = {"character": "Alice"}
        deleted = await watcher.ask("owner-delete", owner=owner, op=1, base="*", chats=True, force=True)
        assert deleted["type"] == "ack", deleted
        assert (await watcher.raw.receive_until(type="generation-stored"))["state"] == "cancelled"
        (trashed,) = (tmp_path / "default-user").glob("trash/*/**/First meeting.jsonl")
        assert b"in the trash" in trashed.read_bytes()


async def test_a_branch_made_meanwhile_has_no_generation_that_runs(tmp_path: Path) -> None:
    """[T9]"""
    async with two(tmp_path) as (_app, producer, watcher):
        ack = await start(producer)
        await delta(producer, 0, "going on")
        await Listener(watcher).until(8)
        branched = await watcher.write("chat-branch", CHAT, base="*", message=ack["messages"][0])
        opened = await producer.open(branched["branch"]["chat"])
        assert opened["generations"] == []
        assert texts(opened["messages"]) == ["And then?"]
        await end(producer)
        assert texts(await messages(watcher)) == ["And then?", "going on"]


async def test_a_chat_that_is_renamed_meanwhile_gets_its_reply(tmp_path: Path) -> None:
    """[T3]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "under ")
        chat_id = (await watcher.open(CHAT))["chat_id"]
        assert (await watcher.write("chat-rename", CHAT, base="*", to="Another name"))["type"] == "ack"
        by_id = f"id:{chat_id}"
        await producer.open(by_id)
        await delta(producer, 6, "two names", chat=by_id)
        assert (await end(producer, chat=by_id, length=15))["type"] == "ack"
        stored = await watcher.raw.receive_until(type="generation-stored")
        assert stored["chat"] == CHAT
        assert texts(await messages(watcher, by_id)) == ["And then?", "under two names"]


async def test_another_programs_edit_takes_nothing_of_the_text(tmp_path: Path) -> None:
    """[T3, T13] The chat has another history; the reply goes on and stands at the tail when its question is gone."""
    async with two(tmp_path) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "before, ")
        await durable(producer, 8)
        file = tmp_path / "default-user/chats/Alice/First meeting.jsonl"
        await until(lambda: file.exists() and b"And then" in file.read_bytes())
        header, *_ = file.read_bytes().split(b"\n")
        file.write_bytes(header + b'\n{"name":"User","mes":"Another program"}\n')
        opened = await watcher.open(CHAT)
        assert texts(opened["messages"]) == ["Another program"]
        assert opened["generations"][0]["text"] == "before, "
        await delta(producer, 8, "after")
        await end(producer, length=13)
        assert texts(await messages(watcher)) == ["Another program", "before, after"]


async def test_a_session_that_is_taken_over_goes_on_at_its_new_connection(tmp_path: Path) -> None:
    """[T20, C6]"""
    async with two(tmp_path, generation_lease_s=1) as (app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "one ")
        await Listener(watcher).until(4)
        second = await TabClient.join(app.urls[0], producer.session)
        second.ops = dict(producer.ops)
        await delta(second, 4, "two")
        await asyncio.sleep(1.4)
        assert (await end(second, length=7))["type"] == "ack"
        assert texts(await messages(watcher)) == ["And then?", "one two"]


async def test_metrics_and_limits_forget_what_ended(tmp_path: Path) -> None:
    """[T18]"""
    async with two(tmp_path) as (app, producer, _watcher):
        for number in range(5):
            await start(producer, f"g{number}")
            await delta(producer, 0, "text", f"g{number}")
            await end(producer, f"g{number}")
        desk = app._hub.generations
        assert (desk.running_count, desk.running_bytes) == (0, 0)
        assert app.counters.generations_started == 5
        assert all(not tab.producing for tab in app._hub.tabs)


@pytest.mark.parametrize("moment", ["before_write", "after_write", "before_tell"])
@pytest.mark.parametrize("nth", range(1, 8))
async def test_a_kill_at_any_write_leaves_one_turn_and_at_most_one_reply(tmp_path: Path, moment: str, nth: int) -> None:
    """[T1, T7, T11, R12, R13] The client does what an SDK does: it comes back, resends, and ends."""
    data = tmp_path / "data"
    session = new_session()
    text = "It was a dark and stormy night."
    told = 0
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT, create=True)
        await server.kill()
        server.settings["failpoints"] = f"log.{moment}=kill@{nth}"
        await server.start()

        async def produce() -> None:
            nonlocal told
            tab = await TabClient.join(server.url, session)
            opened = await tab.open(CHAT)
            mine = [one for one in opened["generations"] if one["id"] == "g1"]
            if not mine:
                tab.ops[CHAT] = 0
                await start(tab)
            elif mine[0]["state"] != "running":
                return
            at = mine[0]["offset"] if mine and "offset" in mine[0] else 0
            assert at >= told, "what was told durable is there"
            for offset in range(at, len(text)):
                await delta(tab, offset, text[offset])
                await asyncio.sleep(0.01)
            if at < len(text):
                frame = await tab.raw.receive_until(type="generation-delta")
                told = max(told, frame["durable"])
            tab.ops[CHAT] = 1
            await end(tab, length=len(text))

        for _ in range(2):
            try:
                async with asyncio.timeout(4):
                    await produce()
            except LOST:
                await server.kill()
                server.settings["failpoints"] = ""
                await server.start()
        if server.settings["failpoints"]:
            # A busy machine joins writes: the nth may be one that nobody waits for, and come whenever it likes.
            await server.kill()
            server.settings["failpoints"] = ""
            await server.start()
        tab = await TabClient.join(server.url, session)
        opened = await tab.open(CHAT)
        assert texts(opened["messages"]) == ["And then?", text]
        assert [one["state"] for one in opened["generations"]] == ["stored"]


async def test_a_backup_in_the_chats_place_ends_the_reply_and_keeps_its_text(tmp_path: Path) -> None:
    """[T24]"""
    async with two(tmp_path) as (_app, producer, watcher):
        await watcher.append(CHAT, "as it was")
        made = await watcher.ask("backup-create", chat=CHAT)
        ack = await start(producer)
        await delta(producer, 0, "in the backup")
        await Listener(watcher).until(13)
        fields = {"backup": made["backup"]["backup"], "base": ack["version"]["integrity"]}
        restored = await watcher.write("backup-restore", CHAT, **fields)
        assert restored["type"] == "ack", restored
        assert (await producer.raw.receive_until(type="generation-stored"))["state"] == "cancelled"
        assert texts(await messages(watcher)) == ["as it was"]
        kept = b"".join(path.read_bytes() for path in (tmp_path / "default-user/backups").rglob("*.jsonl*"))
        assert b"in the backup" in kept
