"""The request head of one connection: read, and answered with an upgrade or with plain HTTP. Sans-I/O.

Rules of this module:
- The library reads the head; what it refuses is told in our words, with its status.
- Routes, Host and Origin are asked of the front door before the library accepts.
- A client that offers no subprotocol is accepted (scripts), one that offers `tellback.v1` gets it. One that offers
  others only is refused with 400: RFC 6455 section 4.2.2 would let the server go on without choosing, but browsers then
  fail the connection themselves without a word about the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, cast

import msgspec
import structlog
from websockets.exceptions import NegotiationError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tellback_protocol.frames import SUBPROTOCOL
from tellback_server.http import UPGRADE_REQUIRED, FrontDoor, HttpResponse, escaped_for_log, refusal

__all__ = ["LIBRARY_LOG", "Accepted", "Handshake", "HttpAnswer"]

log = structlog.get_logger()

_SUBPROTOCOL: Final = Subprotocol(SUBPROTOCOL)

# The library logs frame contents at DEBUG, and a hello carries a token: it never gets a logger that would do so.
LIBRARY_LOG: Final = logging.getLogger("tellback_server.websocket.library")
LIBRARY_LOG.setLevel(logging.ERROR)


class HttpAnswer(msgspec.Struct, frozen=True):
    """This is no WebSocket connection: the answer ends it."""

    response: HttpResponse
    head_only: bool = False


class Accepted(msgspec.Struct, frozen=True):
    """It is one from here on."""

    request: Request
    subprotocol: Subprotocol | None
    writes: list[bytes]
    """The 101, for the peer."""
    rest: bytes
    """What the client sent behind the head."""


class _Protocol(ServerProtocol):
    """The library's handshake with our rule for subprotocols. Overridden and not given as `select_subprotocol=`,
    because the library would store that as a bound method of itself: a cycle per connection."""

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        if not subprotocols:
            return None
        if _SUBPROTOCOL in subprotocols:
            return _SUBPROTOCOL
        raise NegotiationError(f"the subprotocol here is {SUBPROTOCOL}")


class Handshake:
    """See the module."""

    __slots__ = ("_bytes_max", "_front_door", "_head", "protocol")

    def __init__(self, front_door: FrontDoor, head_bytes_max: int, message_bytes_max: int) -> None:
        self._front_door = front_door
        self._bytes_max = head_bytes_max
        self._head = bytearray()
        self.protocol: ServerProtocol = _Protocol(max_size=message_bytes_max, logger=LIBRARY_LOG)

    def receive(self, data: bytes, peer_address: str) -> HttpAnswer | Accepted | None:
        """Collect the request head; None while it is not complete. The library gets every byte of it as it comes,
        because it refuses a bad line before the head is complete, but nothing behind it: what a client sends before our
        101 is looked at after."""
        head = self._head
        fed = len(head)
        head += data
        # The end of the head may lie across two reads.
        end = head.find(b"\r\n\r\n", max(0, fed - 3))
        stop = len(head) if end < 0 else end + 4
        if not head[:1].isalpha():
            return HttpAnswer(refusal(400, "This is not an HTTP request."))  # A TLS hello, for one; it has no line end.
        if stop > self._bytes_max:
            return HttpAnswer(refusal(431, "The request is too large."))
        protocol = self.protocol
        protocol.receive_data(bytes(head[fed:stop]))
        requests = protocol.events_received()
        if requests:
            return self._answer(cast(Request, requests[0]), bytes(head[stop:]), peer_address)
        if protocol.handshake_exc is not None:
            # The library has an answer for what is too long (414, 431) and only a shut door for other garbage.
            writes = protocol.data_to_send()
            status = int(writes[0][9:12]) if writes and writes[0] else 400
            return HttpAnswer(refusal(status, "This is not an acceptable HTTP request."))
        return None

    def _answer(self, request: Request, rest: bytes, peer_address: str) -> HttpAnswer | Accepted:
        try:
            answer = self._front_door.decide(request)
        except Exception:
            log.exception("route-failed", peer=peer_address, path=escaped_for_log(request.path))
            answer = refusal(500, "This did not work.")
        if answer is not None:
            _log_refused(answer.status, request, peer_address)
            return HttpAnswer(answer, head_only=request.method == "HEAD")
        protocol = self.protocol
        response = protocol.accept(request)
        if response.status_code != 101:
            _log_refused(response.status_code, request, peer_address)
            # A 426 must say what to upgrade to (RFC 9110 section 15.5.22).
            upgrade = UPGRADE_REQUIRED if response.status_code == 426 else ()
            sentence = "This is not an acceptable WebSocket handshake."
            return HttpAnswer(refusal(response.status_code, sentence, *upgrade))
        protocol.send_response(response)
        writes = protocol.data_to_send()
        # The parser keeps the request alive, up to `head_bytes_max` of cookies and the like, for as long as it lives.
        # Closing it (a generator that refers to its protocol) breaks the cycle, so that neither waits for the garbage
        # collector.
        protocol.parser.close()
        return Accepted(request, protocol.subprotocol, writes, rest)


def _log_refused(status: int, request: Request, peer_address: str) -> None:
    if status >= 400:
        log.debug(
            "request-refused",
            peer=peer_address,
            status=status,
            method=escaped_for_log(request.method),
            # Without the query: people put tokens there.
            path=escaped_for_log(request.path.partition("?")[0]),
            origin=escaped_for_log(", ".join(request.headers.get_all("Origin"))),
        )
