"""A producer as a process that can be killed: it starts a generation, sends text as far as it is told, and waits.

    python -m tests.support.producing URL SESSION CHAT TARGET STAGE TEXT...

One line on stdout when the stage is reached. It knows only the raw client.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.raw_client import RawClient

STAGES = ("started", "heard", "durable", "ended", "stored")


async def produce(url: str, session: str, chat: str, target: dict[str, Any], stage: str, pieces: list[str]) -> None:
    """Go as far as `stage`, then stay connected for ever."""
    raw = await RawClient.connect(url)
    await raw.send({"type": "hello", "protocol": 1, "session": session, "token": None})
    await raw.send({"type": "open", "id": 1, "chat": chat, "since": None})
    op = (await raw.receive_until(type="opened"))["next_op"]
    about = {"chat": chat, "generation": "g1"}
    await raw.send({"type": "generation-start", "id": 2, "op": op, "base": "*", "target": target, **about})
    assert (await raw.receive_until(id=2))["type"] == "ack"
    sent = ""
    last = STAGES.index(stage)
    for piece in pieces if last >= STAGES.index("heard") else ():
        offset = len(sent.encode("utf-16-le")) // 2
        await raw.send({"type": "generation-delta", "offset": offset, "text": piece, **about})
        sent += piece
    units = len(sent.encode("utf-16-le")) // 2
    while last >= STAGES.index("durable"):
        if (await raw.receive_until(type="generation-delta"))["durable"] == units:
            break
    if last >= STAGES.index("ended"):
        await raw.send({"type": "generation-end", "id": 3, "op": op + 1, "length": units, **about})
    if stage == "stored":
        await raw.receive_until(type="generation-stored")
    print(stage, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, url, session, chat, target, stage, *pieces = sys.argv
    asyncio.run(produce(url, session, chat, json.loads(target), stage, pieces))
