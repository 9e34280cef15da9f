"""The targets of PERFORMANCE, with their floors and stretches: what is compared, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    id: str  # As in PERFORMANCE; "lag" is the one without a number.
    key: str  # The name of its samples; a target with several figures has several.
    what: str
    floor: float
    stretch: float | None = None
    unit: str = "x"
    lower_is_better: bool = False
    by_worst: bool = False  # The worst repetition decides, not the median.

    def reached(self, value: float, limit: float) -> bool:
        return value <= limit if self.lower_is_better else value >= limit


def _less(
    id: str, key: str, what: str, floor: float, stretch: float | None, unit: str = "x", by_worst: bool = False
) -> Target:
    return Target(id, key, what, floor, stretch, unit, lower_is_better=True, by_worst=by_worst)


TARGETS: tuple[Target, ...] = (
    Target("T1", "T1", "durable appends/s at w16 against E", 1.3, 2.0),
    Target("T2", "T2 rate", "durable appends/s at w1 against E", 0.5, 0.62),
    _less("T2", "T2 cpu", "CPU per op at w1 against E's per message", 1.9, 1.5),
    Target("T3", "T3 0", "appends/s against ShareDB in memory, chats of 0 messages", 3.0, 5.0),
    Target("T3", "T3 1000", "the same, 1,000 messages", 20.0, 30.0),
    Target("T3", "T3 10000", "the same, 10,000 messages", 150.0, 300.0),
    Target("T4", "T4 w1", "appends/s at w1 against Hocuspocus + SQLite", 2.0, 4.0),
    Target("T4", "T4 w16", "the same at w16", 6.0, 10.0),
    Target("T5", "T5 w1", "appends/s at w1 against the naive server", 1.6, 2.0),
    Target("T5", "T5 w16", "the same at w16", 5.0, 8.0),
    Target("T8", "T8 append 100", "full save / append, latency p50 of one client, 100 messages", 3.0),
    Target("T8", "T8 append 1000", "the same, 1,000 messages", 8.0),
    Target("T8", "T8 append 10000", "the same, 10,000 messages", 60.0),
    Target("T8", "T8 patch 100", "full save / patch of one message, 100 messages", 3.0),
    Target("T8", "T8 patch 1000", "the same, 1,000 messages", 8.0),
    Target("T8", "T8 patch 10000", "the same, 10,000 messages", 60.0),
    Target("T9", "T9 w1", "rate durable / not durable at w1", 0.6, 0.72),
    Target("T9", "T9 w16", "the same at w16", 0.7, 0.8),
    Target("T10", "T10", "records per fdatasync at saturation (w16, 100 writers)", 25.0, 45.0, unit=""),
    _less("T12", "T12", "ack p50 at 1,000 ops/s, above the disk's fdatasync p50", 0.8, 0.5, " ms"),
    _less("T13", "T13 append", "CPU per append, 10,000 messages against 100", 1.15, 1.05),
    _less("T13", "T13 patch", "CPU per one-op patch, 10,000 messages against 100", 1.15, 1.05),
    _less("tail", "tail state", "CPU per state update, 10,000 messages against 100", 1.25, 1.1),
    _less("tail", "tail floor", "CPU per floor update, 10,000 messages and commits against 100", 1.25, 1.1),
    _less("tail", "tail swipe", "CPU per swipe select at the tail, with floor state, 10,000 against 100", 1.25, 1.1),
    _less("T14", "T14", "memory per idle, joined connection", 8.0, 6.0, " KiB"),
    _less("T15", "T15", "CPU per delivery, fan-out to 500, against websockets.broadcast", 0.7, 0.55),
    _less("T16", "T16", "bytes to the three tabs per op, above twice the message", 1000.0, 800.0, " B"),
    _less(
        "lag",
        "lag",
        "longest gap between acks of others while big chats are opened (worst)",
        50.0,
        None,
        " ms",
        by_worst=True,
    ),
    _less("gen", "gen p99", "push to tab p99: 200 replies of 50 tokens/s, 3 tabs each, journaled", 60.0, 10.0, " ms"),
    _less("gen", "gen durable", "the same: push to told durable, p99", 250.0, None, " ms"),
    _less("gen", "gen cpu", "CPU per delivered token against a raw relay of the same bytes", 2.5, 2.0),
    Target("gen", "gen appends", "durable appends/s at w1 beside them against alone", 0.5, 0.6),
    _less("check", "check", "tellback check of 10,000 chats against reading their bytes once", 30.0, 15.0),
    _less("list", "list", "first page of 200 of 10,000 chats, warm", 100.0, 50.0, " ms"),
)

IDS: tuple[str, ...] = tuple(dict.fromkeys(target.id for target in TARGETS))
