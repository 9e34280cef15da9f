"""What the end of a long chat costs: state updates, floor updates and swipes at 10,000 messages against 100. tail.

Each chat has a floor state with one commit a message, so the long one has a log of 10,000 commits. One client waits for
each answer; the server's CPU is read before and after.
"""

from dataclasses import dataclass
from typing import Any

from benchmarks import server as servers
from benchmarks.chats import Filler, message
from benchmarks.samples import Samples
from benchmarks.scenarios import Plan, Scenario
from benchmarks.server import Server

SIZES = (100, 10_000)
OPS, WARMUP_OPS = 1500, 50
COMMITS_IN_BATCH = 100
KEYS = 50
"""Members of the floor state: as large in the short chat as in the long one."""


@dataclass
class Talk:
    """A chat and what its next requests are made against."""

    name: str
    op: int
    last_id: str
    chat: str
    state: str | None = None
    floor: str | None = None


class Tail(Scenario):
    ids = ("tail",)

    def __init__(self, plan: Plan, samples: Samples) -> None:
        super().__init__(plan, samples)
        self._server: Server | None = None

    def prepare(self) -> None:
        if servers.TELLBACK.missing():
            return
        self._server = Server(servers.TELLBACK)
        self._filler = Filler(self._server)
        self._talks = {size: self._make(size) for size in SIZES}
        self._server.settle()

    def _make(self, size: int) -> Talk:
        """A chat of so many messages, each with a commit."""
        name = f"character:Tail/{size}"
        self._filler.fill(name, size)
        opened = self._filler.ask("opened", {"type": "open", "chat": name, "since": None, "tail": 1})
        assert opened.get("first", 0) == size - 1, "the tail is the last message"
        talk = Talk(name, opened["next_op"], opened["messages"][-1]["id"], opened["version"]["integrity"])
        for begin in range(0, size, COMMITS_IN_BATCH):
            updates = [
                self._floor_update(number, {"floor": number}) for number in range(begin, begin + COMMITS_IN_BATCH)
            ]
            talk.floor = self._ask(talk, {"type": "batch", "requests": updates}, talk.floor)
        return talk

    def _end_with_swipes(self, talk: Talk) -> None:
        """A new last message with two swipes, each with a commit."""
        ack = {"type": "append", "chat": talk.name, "op": talk.op, "base": "*", "messages": [message(300)]}
        answer = self._filler.ask("ack", ack)
        talk.op += 1
        talk.last_id, talk.chat = answer["messages"][0], answer["version"]["integrity"]
        talk.floor = self._ask(talk, self._floor_update(1), talk.floor)
        talk.chat = talk.floor = self._ask(talk, self._swipe(talk, "add", content={"mes": "Or so."}), talk.chat)
        talk.floor = self._ask(talk, self._floor_update(2), talk.floor)

    def _floor_update(self, number: int, at: dict[str, Any] | None = None) -> dict[str, Any]:
        patch = [{"op": "add", "path": f"/k{number % KEYS}", "value": number}]
        update = {"type": "floor-update", "namespace": "floors", "patch": patch}
        return update if at is None else {**update, "at": at}

    def _swipe(self, talk: Talk, action: str, **fields: Any) -> dict[str, Any]:
        return {"type": "swipe", "message": talk.last_id, "action": action, **fields}

    def _ask(self, talk: Talk, frame: dict[str, Any], base: str | None) -> str:
        """The integrity that the answer gives."""
        owner = {"owner": {"chat": talk.name}} if frame["type"].startswith("state-") else {"chat": talk.name}
        ack = self._filler.ask("ack", {**frame, **owner, "op": talk.op, "base": base})
        talk.op += 1
        return str(ack["version"]["integrity"])

    def run(self, repetition: int) -> None:
        if self._server is None:
            return
        for kind in ("state", "floor", "swipe"):
            used = {size: self._measure(kind, talk) for size, talk in self._talks.items()}
            short, long = (used[size] for size in SIZES)
            self._samples.add(f"tail {kind}", long / short)
            print(f"    {kind} at the tail: {short:.0f} us of CPU at 100 messages, {long:.0f} at 10,000", flush=True)
            self._samples.figures[f"{kind} at the tail of 10,000 messages, CPU per op, us"].append(long)

    def _measure(self, kind: str, talk: Talk) -> float:
        """CPU of the server per op, in microseconds."""
        assert self._server is not None
        if kind == "swipe":
            self._end_with_swipes(talk)
        for number in range(WARMUP_OPS):
            self._step(kind, talk, number)
        self._server.settle(20)
        before_s = self._server.cpu_s()
        for number in range(OPS):
            self._step(kind, talk, number)
        return (self._server.cpu_s() - before_s) * 1e6 / OPS

    def _step(self, kind: str, talk: Talk, number: int) -> None:
        if kind == "state":
            patch = [{"op": "add", "path": "/n", "value": number}]
            frame = {"type": "state-update", "namespace": "plain", "patch": patch}
            talk.state = self._ask(talk, frame, talk.state)
        elif kind == "floor":
            talk.floor = self._ask(talk, self._floor_update(number), talk.floor)
        else:
            swipe = number % 2
            talk.chat = talk.floor = self._ask(talk, self._swipe(talk, "select", swipe=swipe), talk.chat)

    def close(self) -> None:
        if self._server is not None:
            self._filler.__exit__()
            self._server.stop()
