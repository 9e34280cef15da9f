"""The main job on real input: three clients on one chat of a real folder, kill -9 in the middle, restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

from websockets.exceptions import WebSocketException

from tests.support.server import Process, TabClient, new_session, sillytavern_copy, texts, tree
from tests.support.waiting import until

CHAT = "character:Mirelle Ashgrove/Mirelle Ashgrove - 2024-09-28@09h30m00s"
FILE = "default-user/chats/Mirelle Ashgrove/Mirelle Ashgrove - 2024-09-28@09h30m00s.jsonl"
LOST = (OSError, TimeoutError, WebSocketException)
"""What a client sees of a killed server."""


class Writer:
    """A tab that appends, resends what got no answer with the same op number, and notes what was acknowledged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = new_session()
        self.op = 0
        self.acked: dict[str, tuple[int, str]] = {}
        """Text to seq and message id."""
        self.unanswered: tuple[int, str] | None = None
        self.count = 0

    async def run(self, process: Process, stop: asyncio.Event) -> None:
        while not stop.is_set():
            tab: TabClient | None = None
            try:
                tab = await TabClient.join(process.url, self.session)
                opened = await tab.open(CHAT)
                if opened["type"] != "opened":
                    await asyncio.sleep(0.05)
                    continue
                while not stop.is_set():
                    if self.unanswered is None:
                        self.count += 1
                        self.unanswered = (self.op + 1, f"{self.name} {self.count}")
                    op, text = self.unanswered
                    answer = await tab.ask(
                        "append", chat=CHAT, op=op, base="*", messages=[{"name": self.name, "mes": text}]
                    )
                    assert answer["type"] == "ack", answer
                    self.acked[text] = (answer["version"]["seq"], answer["messages"][0])
                    self.op = op
                    self.unanswered = None
            except LOST:
                await asyncio.sleep(0.02)
            finally:
                if tab is not None:
                    await tab.close()


async def test_three_clients_an_edit_a_state_and_kill_9_in_the_middle_of_traffic(tmp_path: Path) -> None:
    """R16, R17, R19: every acknowledged write is there exactly once, in order, in log, replicas and file."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    random.seed(4)
    async with Process(data) as process:
        editor = await TabClient.join(process.url)
        opened = await editor.open(CHAT)
        assert opened["count"] == 300
        stale = opened["version"]["integrity"]
        edited = opened["messages"][150]
        patch = [{"op": "replace", "path": "/mes", "value": "edited in the middle"}]
        edit = await editor.write("patch", CHAT, base=stale, message=edited["id"], patch=patch)
        assert edit["type"] == "ack"

        # One of the three is on another version: its patch is a conflict that carries what it missed.
        late = await TabClient.join(process.url)
        await late.open(CHAT)
        refused = await late.write("patch", CHAT, base=stale, message=edited["id"], patch=patch)
        assert refused["type"] == "conflict"
        assert [missed["version"] for missed in refused["missed"]] == [edit["version"]]
        state = await editor.write_state("state-update", CHAT, namespace="memory", base=None, set={"mood": "calm"})
        assert state["type"] == "ack"

        stop = asyncio.Event()
        writers = [Writer(f"writer {number}") for number in range(3)]
        running = [asyncio.create_task(writer.run(process, stop)) for writer in writers]
        for _ in range(5):
            await asyncio.sleep(random.uniform(0.2, 0.6))
            await process.kill()
            await process.start()
        await until(lambda: sum(len(writer.acked) for writer in writers) > 100, 60)
        stop.set()
        await asyncio.gather(*running)
        acked = {text: seq for writer in writers for text, (seq, _) in writer.acked.items()}
        assert len(acked) > 100, "the writers got through"

        reader = await TabClient.join(process.url)
        everything = await reader.open(CHAT)
        check(everything["messages"], opened["messages"], edited["id"], writers, acked)
        states = await reader.ask("state-get", owner={"chat": CHAT}, namespaces=["memory"])
        assert states["states"]["memory"]["data"] == {"mood": "calm"}

        history: list[dict[str, Any]] = []
        while True:
            page = await reader.ask("history", chat=CHAT, after=len(history), limit=500)
            history.extend(page["commits"])
            if not page["more"]:
                break
        assert [commit["version"]["seq"] for commit in history] == list(range(1, len(history) + 1))
        logged = [
            (message["mes"], commit["version"]["seq"]) for commit in history for effect in commit["ops"]
            if effect["op"] == "append" for message in effect["messages"]
        ]
        assert {text: seq for text, seq in logged if text in acked} == acked
        assert len({text for text, _ in logged}) == len(logged), "nothing twice"
        assert await process.stop() == 0

    lines = (data / FILE).read_bytes().split(b"\n")
    written = [json.loads(line) for line in lines[1:] if line]
    check(written, opened["messages"], edited["id"], writers, acked)
    old = before[FILE][0].split(b"\n")
    untouched = [index for index in range(301) if index != 151]
    assert [lines[index] for index in untouched] == [old[index] for index in untouched]
    after = tree(data)
    for path, (content, _, _) in before.items():
        if path != FILE:
            assert after[path][0] == content, path
    sidecar = data / FILE.replace(".jsonl", ".luker-state.memory.json")
    assert json.loads(sidecar.read_bytes()) == {"mood": "calm"}


def check(
    messages: list[dict[str, Any]], original: list[dict[str, Any]], edited: str, writers: list[Writer],
    acked: dict[str, int],
) -> None:
    """The old messages with one edit, then every acknowledged message once, in the order of the log."""
    said = texts(messages)
    expected = [
        "edited in the middle" if message["id"] == edited else message["mes"] for message in original
    ]
    assert said[:300] == expected
    new = said[300:]
    assert len(set(new)) == len(new), "nothing twice"
    assert [text for text in new if text in acked] == sorted(acked, key=acked.__getitem__)
    unanswered = {writer.unanswered[1] for writer in writers if writer.unanswered}
    assert set(new) - set(acked) <= unanswered
    with contextlib.suppress(KeyError):
        for message in messages[300:]:
            assert message["id"]
