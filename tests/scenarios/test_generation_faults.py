"""A full disk under replies that are being written, deltas in any disorder over a socket, and tabs that sleep."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from tests.scenarios.test_generations import CHAT, Frame, Listener, delta, durable, end, messages, start, two
from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, running, texts
from tests.support.sse_server import DONE, Exchange, SseServer, piece
from tests.support.waiting import GUARD_S

OTHER = "character:Alice/Asked of a model"


def units_of(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


async def test_a_full_disk_takes_no_text_away(tmp_path: Path) -> None:
    """[T11, T25] Tabs hear on, `durable` stands still, ends wait; with room again everything goes on by itself."""
    full = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("before, "))
        await full.wait()
        await exchange.chunk(piece("meanwhile"))
        await exchange.chunk(DONE)
        await exchange.end()

    async with (
        SseServer(script) as model,
        ForkedServer(
            tmp_path / "data", failpoints="log.spare.before_fill=error:ENOSPC@2", log_segment_bytes=65536,
            checkpoint_interval_s=600, upstream=[f"local={model.url}"],
        ) as server,
    ):
        producer, watcher = await TabClient.join(server.url), await TabClient.join(server.url)
        for tab, chat in itertools.product((producer, watcher), (CHAT, OTHER)):
            await tab.open(chat, create=tab is producer)
        about: Frame = {"base": "*", "generation": "g2", "upstream": "local", "body": {}}
        assert (await watcher.write("generate", OTHER, **about))["type"] == "ack"
        await start(producer)
        text, refused, listener = "", {"type": "ack"}, Listener(watcher)
        async with asyncio.timeout(GUARD_S):
            while refused["type"] == "ack":
                more = f"{len(text):05}" * 800
                await delta(producer, len(text), more)
                text += more
                refused = await producer.append(OTHER, "is there room?")
        assert (refused["code"], refused["retry"]) == ("storage-full", "backoff")
        full.set()
        await delta(producer, len(text), "while it was full")
        text += "while it was full"
        await listener.until(len(text))
        assert listener.text == text
        assert listener.durable < len(text)
        late = await end(producer, length=len(text))
        assert (late["code"], late["retry"]) == ("storage-full", "backoff")
        assert (await watcher.write("generation-cancel", CHAT, generation="g1"))["code"] == "storage-full"
        # Nobody does anything: the server finds room, and the text is in the log.
        async with asyncio.timeout(GUARD_S):
            await durable(producer, len(text))
            await watcher.raw.receive_until(type="generation-stored", generation="g2")
        assert (await end(producer, length=len(text)))["type"] == "ack"
        await server.kill()
        server.settings["failpoints"] = ""
        await server.start()
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"]) == ["And then?", text]
        assert texts((await tab.open(OTHER))["messages"])[-1] == "before, meanwhile"
        assert "Traceback" not in server.errors.read_text()


ALPHABET = ["a", "ok", "é", "\n", '"', "\\", "\U0001f600", "\U0001d11e", "中", "\u0301", "\u2028", "\x00", "ok"]


async def refusal_of(producer: TabClient, offset: int, text: str) -> tuple[str, int] | None:
    """Send a delta; what the error says if there is one."""
    await delta(producer, offset, text, id=0)
    await producer.raw.send({"type": "ping", "id": 1_000_000 + offset})
    found: tuple[str, int] | None = None
    while (frame := await producer.raw.receive())["type"] != "pong":
        if frame["type"] == "error":
            found = frame["code"], frame["expected"]
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_R15_whatever_happens_to_deltas_on_the_way_every_tab_has_the_text(tmp_path: Path, seed: int) -> None:
    """[T5, T6, T10, T13, T20] Duplicated, reordered, cut, overlapping, inside pairs, and the producer comes back."""
    chance = random.Random(seed)
    tokens = [chance.choice(ALPHABET) for _ in range(150)]
    text = "".join(tokens)
    raw = text.encode("utf-16-le")
    total = len(raw) // 2
    async with two(tmp_path) as (app, producer, watcher):
        await start(producer)
        listeners = [Listener(watcher)]
        at = 0
        seen: set[str | None] = set()
        while at < total:
            first = max(0, min(total, at + chance.choice([0, 0, 0, -1, -3, -9, 1, 5])))
            last = min(total, first + chance.randint(0, 8))
            try:
                some = raw[2 * first : 2 * last].decode("utf-16-le")
            except UnicodeDecodeError:
                # JSON carries no half of a pair; an offset inside one it does carry.
                last, some = first, ""
            is_inside = 0 < first < total and raw[2 * first + 1] & 0xFC == 0xDC
            wanted = "generation-gap" if first > at else "bad-offset" if is_inside else None
            assert await refusal_of(producer, first, some) == (None if wanted is None else (wanted, at))
            seen.add(wanted)
            at = at if wanted else max(at, last)
            if chance.random() < 0.1:
                assert (await producer.ask("generation-attach", chat=CHAT, generation="g1"))["offset"] == at
            if chance.random() < 0.05:
                late = await TabClient.join(app.urls[0])
                (listed,) = (await late.open(CHAT))["generations"]
                assert listed["text"].encode("utf-16-le") == raw[: 2 * at]
                listeners.append(Listener(late, listed["text"]))
            if chance.random() < 0.03:
                producer.raw.abort()
                producer = await TabClient.join(app.urls[0], producer.session)
                assert (await producer.open(CHAT))["generations"][0]["offset"] == at
        assert seen == {None, "generation-gap", "bad-offset"}
        assert (await end(producer, length=total))["type"] == "ack"
        assert (await messages(producer))[-1]["mes"] == text
        for listener in listeners:
            assert text.startswith((await listener.hear()).text)


async def test_sleeping_tabs_cost_one_place_in_the_text_and_nobody_else_anything(tmp_path: Path) -> None:
    """[T12] Twenty sleep while 6 MB come; the one that is awake has each piece before the next is sent."""
    size, count, sleepers = 20_000, 300, 20
    async with running(tmp_path) as app:
        url = app.urls[0]
        producer, awake = await TabClient.join(url), await TabClient.join(url)
        await producer.open(CHAT, create=True)
        await awake.open(CHAT)
        asleep = [await TabClient.join(url) for _ in range(sleepers)]
        for tab in asleep:
            await tab.open(CHAT)
            tab.raw.connection.transport.pause_reading()
        await start(producer)
        listener = Listener(awake)
        for index in range(count):
            await delta(producer, index * size, chr(97 + index % 26) * size)
            await listener.until((index + 1) * size)
        await durable(producer, count * size)
        outboxes = [tab.outbox for tab in app._hub.tabs]
        assert max(outbox.waiting_bytes for outbox in outboxes) < 4096, "no text waits anywhere"
        assert max(len(outbox._deltas) for outbox in outboxes) == 1, "only a place in it"
        assert app.counters.generation_deltas_sent < count * (2 + sleepers) * 0.8, "what came meanwhile is joined"
        assert app._hub.generations.running_bytes == size * count
        ended = await end(producer, length=size * count)
        assert ended["type"] == "ack"
        text = (await listener.hear()).text
        asleep[0].raw.connection.transport.resume_reading()
        late = Listener(asleep[0])
        while (frame := await asleep[0].raw.receive())["type"] != "behind":
            late.take(frame)
        assert text.startswith(late.text)
        assert (await messages(asleep[0]))[-1]["mes"] == text
