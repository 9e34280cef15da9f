"""The first page of 200 of a user's 10,000 chats, warm: what a user waits for who opens the list. list.

A folder as SillyTavern leaves it: 20 characters, 500 chats each, 20 messages a chat. The server is started anew on it
for each repetition; the first list builds the index or reads it back, and is a figure beside. Some chats are live and
were written to, so that memory and files are joined.
"""

import json
import time
from pathlib import Path

from benchmarks import server as servers
from benchmarks.chats import Filler, message
from benchmarks.samples import Samples, median
from benchmarks.scenarios import Plan, Scenario
from benchmarks.server import Server, new_folder

CHARACTERS, CHATS, MESSAGES = 20, 500, 20
LIVE = 50
PAGES = 20


class Lists(Scenario):
    ids = ("list",)

    def __init__(self, plan: Plan, samples: Samples) -> None:
        super().__init__(plan, samples)
        self._folder: Path | None = None

    def prepare(self) -> None:
        if servers.TELLBACK.missing():
            return
        self._folder = new_folder()
        header = json.dumps({"user_name": "unused", "character_name": "unused", "chat_metadata": {}})
        body = "\n".join([header, *(json.dumps(message(300), ensure_ascii=False) for _ in range(MESSAGES))])
        for character in range(CHARACTERS):
            folder = self._folder / "default-user" / "chats" / f"Character {character}"
            folder.mkdir(parents=True)
            for chat in range(CHATS):
                (folder / f"Chat {chat}.jsonl").write_text(body)

    def run(self, repetition: int) -> None:
        if self._folder is None:
            return
        with Server(servers.TELLBACK, self._folder) as server, Filler(server) as filler:
            cold_ms = _list(filler, "the index is built" if repetition == 0 else "the index is read")
            for chat in range(LIVE):
                name = f"character:Character {chat % CHARACTERS}/Chat {chat}"
                next_op = filler.ask("opened", {"type": "open", "chat": name, "since": None})["next_op"]
                append = {"type": "append", "chat": name, "op": next_op, "base": "*", "messages": [message(300)]}
                filler.ask("ack", append)
            warm_ms = [_list(filler, "warm") for _ in range(PAGES)]
            search_ms = _search(filler)
        figures = self._samples.figures
        how = "building" if repetition == 0 else "reading"
        figures[f"first list after a start, {how} the index, ms"].append(cold_ms)
        figures["first page of 200 of 10,000 chats, longest, ms"].append(max(warm_ms))
        figures["a search that finds nothing in 10,000 chats, all pages, ms"].append(search_ms)
        self._samples.add("list", median(warm_ms))


def _list(filler: Filler, what: str) -> float:
    before_s = time.perf_counter()
    page = filler.ask("chat-list", {"type": "chat-list", "limit": 200})
    took_ms = (time.perf_counter() - before_s) * 1000
    assert len(page["chats"]) == 200, f"{what}: {len(page['chats'])} chats"
    assert page["total"] == CHARACTERS * CHATS, f"{what}: {page['total']} in total"
    return took_ms


def _search(filler: Filler) -> float:
    before_s = time.perf_counter()
    cursor = None
    while True:
        frame = {"type": "chat-search", "query": "nowhereatall", "cursor": cursor}
        page = filler.ask("chat-search", frame)
        assert page["found"] == [], "nobody said that"
        cursor = page["cursor"]
        if cursor is None:
            return (time.perf_counter() - before_s) * 1000
