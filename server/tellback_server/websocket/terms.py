"""What a connection and its owner agree on: who is at the other end, what is told, and how much may be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tellback_server.http import FrontDoor

if TYPE_CHECKING:
    from tellback_server.websocket.connection import WebSocketConnection

__all__ = ["ConnectionSettings", "HandlerFactory", "PeerInfo", "TransportLimits", "WebSocketHandler"]


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Who is at the other end, as far as the handshake tells. Texts are the peer's own words: escape before logging."""

    address: str
    port: int
    origin: str | None
    host: str | None
    user_agent: str | None
    subprotocol: str | None


class WebSocketHandler(Protocol):
    """What a connection tells its owner. All calls come from the event loop, one at a time, never after `closed`."""

    def opened(self, connection: WebSocketConnection) -> None:
        """The handshake is done; sending is allowed from here on."""

    def text_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """One whole text message, valid UTF-8, within `connection.message_limit_bytes`. Calling `pause_reading` in
        here holds back even what has already been read."""

    def binary_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """One whole binary message. The connection stays open."""

    def read_ended(self, connection: WebSocketConnection) -> None:
        """Everything that one read brought has been told."""

    def paused(self, connection: WebSocketConnection) -> None:
        """The peer reads more slowly than we write: the write buffer is over its high-water mark."""

    def writable(self, connection: WebSocketConnection) -> None:
        """The write buffer went down again after `paused`."""

    def closed(self, connection: WebSocketConnection, code: int, reason: str) -> None:
        """No message follows and nothing can be sent. `code` and `reason` are those of whichever close frame was
        first, ours or the peer's; 1006 when there was none."""


HandlerFactory = Callable[[PeerInfo], WebSocketHandler]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """What one connection may use. Times in seconds, sizes in bytes."""

    handshake_timeout_s: float = 10.0
    handshake_bytes_max: int = 16 * 1024
    hello_bytes_max: int = 8 * 1024
    """The message limit of a new connection; the session raises it when it has accepted the hello."""
    assembly_timeout_s: float = 30.0
    assembly_bytes_per_s: int = 16 * 1024
    """A message that is being sent gets one second more for each so many bytes, so a slow line can still send the
    largest message while one byte a second cannot keep a buffer for ever."""
    close_timeout_s: float = 5.0
    control_frames_per_s_max: int = 100
    write_high_water_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What all connections of a gateway share. `lost` is called once when a transport is gone."""

    handler_factory: HandlerFactory
    lost: Callable[[WebSocketConnection], None]
    front_door: FrontDoor = field(default_factory=FrontDoor)
    limits: TransportLimits = field(default_factory=TransportLimits)
    fast_path: bool = True
