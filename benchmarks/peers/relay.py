"""The raw relay: what a producer sends goes to the tabs of its chat, in the bytes that we would send, and nothing else.

uvloop and bare protocols, no WebSocket library; it neither reads the text nor keeps, joins or syncs anything. What it
costs is the price of the sockets.
"""

import asyncio
import base64
import hashlib
import re
from collections import defaultdict
from typing import cast

import uvloop

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
)
tabs: dict[bytes, list[asyncio.Transport]] = defaultdict(list)


def frame(text: bytes) -> bytes:
    length = len(text)
    return (bytes((0x81, length)) if length < 126 else b"\x81\x7e" + length.to_bytes(2, "big")) + text


def member(text: bytes, name: bytes) -> bytes:
    start = text.index(b'"%b":"' % name) + len(name) + 4
    return text[start : text.index(b'"', start)]


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._pending = b""
        self._upgraded = False
        self._transport: asyncio.Transport
        self._others: list[asyncio.Transport] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        at, end = 0, len(data)
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            found = re.search(rb"(?i)sec-websocket-key: (\S+)", data)
            if at < 4 or found is None:
                self._pending = data
                return
            accept = base64.b64encode(hashlib.sha1(found[1] + MAGIC).digest())
            protocol = b"Sec-WebSocket-Protocol: tellback.v1\r\n" if b"tellback.v1" in data[:at] else b""
            self._transport.write(UPGRADED % accept + protocol + b"\r\n")
            self._upgraded = True
        while end - at >= 6:
            length, start = data[at + 1] & 127, at + 6
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 8
            if start + length > end:
                break
            # The generator's key is zero, so that its bytes are the text.
            self._message(data[start : start + length])
            at = start + length
        self._pending = data[at:]

    def _message(self, text: bytes) -> None:
        if text.startswith(b'{"type":"generation-delta"'):
            if self._others is None:
                self._others = [tab for tab in tabs[member(text, b"chat")] if tab is not self._transport]
            told = frame(text[:-1] + b',"durable":%d}' % 10_000)
            for tab in self._others:
                tab.write(told)
        elif b'"hello"' in text[:20]:
            self._transport.write(frame(b'{"type":"welcome","protocol":1}'))
        elif text.startswith(b'{"type":"open"'):
            tabs[member(text, b"chat")].append(self._transport)
            self._transport.write(frame(b'{"type":"opened","id":1,"messages":[]}'))
        else:
            self._transport.write(frame(b'{"type":"ack","id":2}'))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=2000)
    print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
