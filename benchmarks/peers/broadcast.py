"""The fan-out peer: ``websockets.broadcast``, the library's own and fastest way to tell many connections one thing.

It keeps nothing and syncs nothing: the frame to tell is put together from bytes at hand, so the cost measured is that
of the deliveries.
"""

import asyncio
import re

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

VERSION = b'"version":{"epoch":1,"seq":%d,"integrity":"0198f2f4-58a1-7cc2-9d0b-0d7a4b1f2c3d"}'
tabs: set[ServerConnection] = set()
seq = 0


async def handle(connection: ServerConnection) -> None:
    global seq
    try:
        async for text in connection:
            assert isinstance(text, str)
            if text.startswith('{"type":"hello"'):
                await connection.send('{"type":"welcome","protocol":1}')
            elif text.startswith('{"type":"open"'):
                tabs.add(connection)
                await connection.send('{"type":"opened","id":1,"messages":[]}')
            else:
                seq += 1
                version = VERSION % seq
                messages = text[text.index('"messages":') : -1].encode()
                ack = b'{"type":"ack","id":%d,"chat":"character:Bench/0","op":%d,' % (seq + 1, seq)
                await connection.send(ack + version + b',"durable":"none"}', text=True)
                told = b'{"type":"integrity","chat":"character:Bench/0",' + version + PREVIOUS + messages + b"}]}"
                broadcast([tab for tab in tabs if tab is not connection], told.decode())
    except ConnectionClosed:
        pass
    finally:
        tabs.discard(connection)


# What an integrity frame carries between its version and its messages, so that the frames are of our size.
PREVIOUS = re.sub(
    rb"\s",
    b"",
    b""","previous":"0198f2f4-58a1-7cc2-9d0b-0d7a4b1f2c3c",
    "by":{"session":"AbCdEfGhIjKlMnOpQrStUv","op":1},"ops":[{"op":"append",""",
)


async def main() -> None:
    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(f"ws://127.0.0.1:{port}/ws", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main())
