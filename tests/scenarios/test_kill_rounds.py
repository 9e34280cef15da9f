"""kill -9 at any moment, again and again, under four writers with ops in flight; an oracle outside the server.

The number of rounds is TELLBACK_KILL_ROUNDS (100).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.oracle import Notes, Writer, check, whole_history
from tests.support.server import TabClient, sillytavern_copy
from tests.support.under_writers import goes_on, writing
from tests.support.waiting import until

ROUNDS = int(os.environ.get("TELLBACK_KILL_ROUNDS", "100"))
CHAT = "character:Pip/Pip - 2024-11-01@12h00m00s"
FILE = "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"


@pytest.mark.timeout(600)
async def test_R16_R17_R19_R45_a_hundred_times_kill_9_under_four_writers(tmp_path: Path) -> None:
    """[D1] [O2] [V1] [V2]: invariants 1 to 10 of RELIABILITY hold over the whole run, and the file agrees."""
    data = sillytavern_copy(tmp_path)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    notes = Notes()
    async with ForkedServer(data, checkpoint_interval_s=0.05) as server:
        reader = await TabClient.join(server.url)
        first = await reader.open(CHAT)
        await reader.close()
        writers = [Writer(CHAT, notes, number) for number in range(4)]
        async with writing(server, notes, writers):
            before = 0
            for _ in range(ROUNDS):
                await until(lambda before=before: notes.connections >= before + 2)
                # Some of them see checkpoints, some not even the end of a batch.
                await goes_on(notes, chance.choice((1, 20, 100, 300)))
                before = notes.connections
                await server.kill()
                await server.start()
            await until(lambda: notes.duplicates > 0)
        reader = await TabClient.join(server.url)
        final = await reader.open(CHAT)
        states = (await reader.ask("state-get", owner={"chat": CHAT}, namespaces=["memory"]))["states"]
        history = await whole_history(reader, CHAT)
        check(notes, history, first, final, {"memory": states["memory"]["data"]}, writers)
        assert await server.stop() == 0
    assert notes.duplicates > 0, "some acks were lost on the way"
    assert notes.connections >= 4 * ROUNDS // 2, "the writers came back"
    lines = [json.loads(line) for line in (data / FILE).read_bytes().split(b"\n")[1:] if line]
    assert [line["mes"] for line in lines] == [message["mes"] for message in final["messages"]]
    assert [line.get("extra_note") for line in lines] == [
        message.get("extra_note") for message in final["messages"]
    ]
    log = server.errors.read_text()
    assert "Traceback" not in log
    assert "outside-edit" not in log, "a crash is told from another program's edit"
    print(f"{len(history)} commits, {len(notes.invocations)} ops, {notes.duplicates} resent, {server.starts} starts")
