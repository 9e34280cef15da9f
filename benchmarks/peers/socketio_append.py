"""python-socketio with an ASGI server: each op is appended and fsynced, then acknowledged and emitted to the room.

Needs `benchmarks/requirements.txt`. The sync of an op runs in the default executor, so the loop goes on. There is no
group commit, because that is what one writes with a library whose handlers are one call per event.
"""

import asyncio
import os
import socket
import sys
from typing import Any

import orjson
import socketio
import uvicorn

io = socketio.AsyncServer(async_mode="asgi", transports=["websocket"], http_compression=False)
log_fd = os.open(os.path.join(sys.argv[1], "log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


def store(record: bytes) -> None:
    os.write(log_fd, record)
    os.fsync(log_fd)


@io.event  # type: ignore[untyped-decorator]
async def join(sid: str, data: dict[str, Any]) -> bool:
    await io.enter_room(sid, data["chat"])
    return True


@io.event  # type: ignore[untyped-decorator]
async def append(sid: str, data: dict[str, Any]) -> dict[str, Any]:
    await asyncio.get_running_loop().run_in_executor(None, store, orjson.dumps(data) + b"\n")
    await io.emit("integrity", data, room=data["chat"], skip_sid=sid)
    return {"op": data["op"]}


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        socketio.ASGIApp(io), loop="uvloop", ws="auto", log_level="error", ws_per_message_deflate=False
    )
    server = uvicorn.Server(config)
    print(f"ws://127.0.0.1:{listening.getsockname()[1]}/socket.io/?EIO=4&transport=websocket", flush=True)
    await server.serve(sockets=[listening])


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
