"""One WebSocket connection, by websockets' Sans-I/O protocol.

Read in this order: terms (what the owner of a connection sees), handshake, message (fragments), text_frames, connection
(the whole).
"""

from tellback_server.websocket.connection import WebSocketConnection
from tellback_server.websocket.message import FRAGMENTS_FREE
from tellback_server.websocket.terms import (
    ConnectionSettings,
    HandlerFactory,
    PeerInfo,
    TransportLimits,
    WebSocketHandler,
)
from tellback_server.websocket.text_frames import text_frame, text_frames

__all__ = [
    "FRAGMENTS_FREE",
    "ConnectionSettings",
    "HandlerFactory",
    "PeerInfo",
    "TransportLimits",
    "WebSocketConnection",
    "WebSocketHandler",
    "text_frame",
    "text_frames",
]
