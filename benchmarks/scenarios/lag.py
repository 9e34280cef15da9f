"""Whether a big chat that is opened stops everybody else: the longest time without an ack of ten other writers. lag.

One chat of 3,000 short messages and one of about 6 MB. The server is started anew on the same folder for each
repetition, so the first open of each is a cold one; the others find the chat live. The same load without openers is
the control: what the machine itself takes away.
"""

from pathlib import Path

from benchmarks import generator
from benchmarks import server as servers
from benchmarks.chats import Filler
from benchmarks.samples import Samples
from benchmarks.scenarios import Plan, Scenario
from benchmarks.server import Server

LONG, HEAVY = "character:Large/long", "character:Large/heavy"
MESSAGES, HEAVY_MESSAGE_BYTES = 3000, 2000
OPENS = 12
WRITERS = 10
# The two chats come in turn, about 1 and 6 MB; less than this on average, and something was not delivered.
EACH_BYTES_MIN = 3_000_000


class Lag(Scenario):
    ids = ("lag",)

    def __init__(self, plan: Plan, samples: Samples) -> None:
        super().__init__(plan, samples)
        self._folder: Path | None = None

    def prepare(self) -> None:
        if servers.TELLBACK.missing():
            return
        with Server(servers.TELLBACK) as server:
            self._folder = server.folder
            with Filler(server) as filler:
                filler.fill(LONG, MESSAGES)
                filler.fill(HEAVY, MESSAGES, HEAVY_MESSAGE_BYTES)

    def run(self, repetition: int) -> None:
        if self._folder is None:
            return
        with Server(servers.TELLBACK, self._folder) as server:
            prefix = f"character:Others/{repetition}-"
            load = {"chats": WRITERS, "subscribers": 2, "seconds": max(self._plan.seconds, 2), "chat_prefix": prefix}
            opening = generator.run(server, **load, open_chat=[LONG, HEAVY], opens=OPENS)
            control = generator.run(server, **load)
        self._samples.ran(server.kind.name, "w1 while others open", opening)
        self._samples.ran(server.kind.name, "w1, nobody opens", control)
        figures = self._samples.figures
        figures["longest gap while big chats are opened, ms"].append(opening.gap_max_us / 1000)
        figures["longest gap when nobody opens, ms"].append(control.gap_max_us / 1000)
        figures["opening a big chat, mean, ms"].append(opening.open_ms_mean)
        figures["opening a big chat, longest, ms"].append(opening.open_ms_max)
        if opening.opens < OPENS:
            self._samples.problem("lag", f"only {opening.opens} of {OPENS} opens ended within the window")
        elif opening.open_bytes / opening.opens < EACH_BYTES_MIN:
            self._samples.problem("lag", f"an opened chat was {opening.open_bytes // opening.opens:,} bytes on average")
        else:
            self._samples.add("lag", opening.gap_max_us / 1000, opening)
