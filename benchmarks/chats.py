"""Chats that are there before a measurement: made and filled through the wire.

One plain client does it and waits for each answer; it is never the one that is measured.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks import server as servers
from benchmarks.server import Server, ServerError

TEXT = (
    "She put the lantern down — slowly, as if the café were asleep — and asked what the letter had said. "
    "Nobody answered, and the rain went on against the shutters as it had all week. "
)
BATCH_BYTES = 48 * 1024  # Of messages in one append while filling; well below any frame limit.


def message(size_bytes: int, name: str = "User") -> dict[str, Any]:
    """A message of about `size_bytes` of JSON, of SillyTavern's shape."""
    frame = {"name": name, "is_user": name == "User", "send_date": "2025-01-01T00:00:00.000Z", "mes": ""}
    room = size_bytes - len(json.dumps(frame, separators=(",", ":")))
    return frame | {"mes": (TEXT * (room // len(TEXT) + 1))[: max(room, 1)]}


class FillError(Exception):
    """The server answered something else than was asked for."""


@dataclass(frozen=True)
class Filled:
    name: str
    middle_id: str  # A message in the middle: what patches are made against.


class Filler:
    """Use as a context manager. One session; it does not stay in the chats it filled."""

    def __init__(self, server: Server) -> None:
        self._connection: ClientConnection = connect(
            f"ws://127.0.0.1:{server.port}{server.path}",
            subprotocols=[Subprotocol("tellback.v1")],
            compression=None,
            max_size=None,
            proxy=None,
        )
        self._id = 0
        self._connection.send(
            json.dumps({"type": "hello", "protocol": 1, "session": secrets.token_urlsafe(16), "token": None})
        )
        self._await("welcome")

    def __enter__(self) -> "Filler":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _await(self, kind: str) -> dict[str, Any]:
        while True:
            frame: dict[str, Any] = json.loads(self._connection.recv(timeout=60))
            if frame["type"] == kind:
                return frame
            if frame["type"] in ("error", "conflict", "goaway"):
                raise FillError(json.dumps(frame)[:700])

    def ask(self, answer: str, frame: dict[str, Any]) -> dict[str, Any]:
        """The frame of type `answer` that answers `frame`. Raises: FillError."""
        self._id += 1
        self._connection.send(json.dumps(frame | {"id": self._id}))
        return self._await(answer)

    def fill(self, name: str, count: int, size_bytes: int = 300) -> Filled:
        """Make the chat and append `count` messages of `size_bytes`."""
        self.ask("opened", {"type": "open", "chat": name, "create": True, "since": None})
        ids: list[str] = []
        op = 0
        while len(ids) < count:
            op += 1
            batch = [message(size_bytes)] * min(count - len(ids), max(BATCH_BYTES // size_bytes, 1))
            frame = {"type": "append", "chat": name, "op": op, "base": "*", "messages": batch}
            ids += self.ask("ack", frame)["messages"]
        return Filled(name, ids[len(ids) // 2] if ids else "")

    def durability(self) -> str:
        """What an ack of this server says about itself."""
        name = "character:Bench/durability"
        self.ask("opened", {"type": "open", "chat": name, "create": True, "since": None})
        frame = {"type": "append", "chat": name, "op": 1, "base": "*", "messages": [message(300)]}
        return str(self.ask("ack", frame).get("durable"))


def unsafe_is_refused() -> str | None:
    """Why the server that should not sync cannot be compared with, or None.

    A server that ignores the switch would make T9 look perfect. Its acks tell: without a sync none may say "fsync".
    """
    try:
        with Server(servers.TELLBACK_UNSAFE) as server, Filler(server) as filler:
            durability = filler.durability()
    except (ServerError, FillError, OSError, WebSocketException) as error:
        return f"the server without sync does not work: {error}".splitlines()[0]
    return "with TELLBACK_UNSAFE_NO_SYNC=1 the acks still say durable: fsync" if durability == "fsync" else None
