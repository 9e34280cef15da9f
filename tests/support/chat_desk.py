"""A desk: one chat's stream with a real folder and a real log. What a test does to it, the actor and keeper do."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import orjson

from tellback_protocol.decide import Committed, Duplicate, Fresh, Stored, decide, install
from tellback_protocol.frames import Limits
from tellback_protocol.ids import CharacterChat, Place, StateOwner, Version
from tellback_protocol.requests import Append, Delete, MetadataUpdate, Patch, StateDelete, StateUpdate, Write
from tellback_protocol.stream import Stream
from tellback_server.checkpoint import CheckpointDone, CheckpointJob, OutsideEdit, checkpoint
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.loading import ChatMissing, LoadedStream, adopt, create_chat, load_chat
from tellback_server.log import Log
from tellback_server.records import ANCHOR, COMMIT, STORED, owner_key
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.held import FileState
from tests.support.injected_fs import InjectedFs, SimulatedCrash, UnsyncedFs

SESSION = "a-session-of-sixteen"
PLACE = CharacterChat("Pip", "talk")


class SilentLogger:
    """Keeps the lines that the file store tells."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, /, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


class Desk:
    """See the module. `close` and `open` are a clean stop and a start; `crash` leaves the log as it is."""

    def __init__(self, data: Path, place: Place = PLACE, fs: Fs | None = None) -> None:
        self.data = data
        self.place = place
        self.fs = fs if fs is not None else Fs()
        self.clock = Clock()
        self.logger = SilentLogger()
        self.executor = ThreadPoolExecutor(1)
        self.op = 0
        self.session = SESSION
        self.acknowledged: dict[str, bytes] = {}
        self.log: Log

    @property
    def path(self) -> Path:
        return Path(self.files.owner_path(DEFAULT_USER, self.place))

    @property
    def stream(self) -> Stream:
        return self.loaded.stream

    @property
    def held(self) -> FileState:
        return self.loaded.file

    def start(self) -> Desk:
        """The log and the store, without a chat."""
        self.files = FileStore(self.fs, str(self.data), clock=self.clock, logger=self.logger)
        folder = str(self.data / ".tellback" / "log")
        self.log = Log.open(UnsyncedFs(), folder, self.clock, segment_bytes=1 << 16, sync=False)
        self.log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
        return self

    def read(self) -> LoadedStream | ChatMissing:
        return load_chat(self.files, self.log, DEFAULT_USER, self.place, now_ms=self.clock.now_ms())

    async def open(self) -> LoadedStream:
        """Start and load."""
        self.start()
        loaded = self.read()
        assert isinstance(loaded, LoadedStream)
        await self.took(loaded)
        return loaded

    async def create(self) -> None:
        """Start with a chat that has no file yet."""
        self.start()
        version = Version(1, 0, self.clock.uuid4())
        assert not isinstance(self.place, StateOwner), "only chats are created"
        await self.took(create_chat(DEFAULT_USER, self.place, self.clock.uuid4(), version, self.clock.now_ms()))

    async def took(self, loaded: LoadedStream) -> None:
        self.loaded = loaded
        for record in loaded.records:
            self.log.append(record.kind, record.owner, record.seq, record.body)
        self.anchored = loaded.anchored
        self.op = self.stream.next_op(self.session) - 1
        await self.log.flush()

    def stop(self) -> None:
        self.log.close()

    async def restart(self) -> LoadedStream:
        self.stop()
        return await self.open()

    async def adopt(self) -> LoadedStream:
        await self.log.flush()
        loaded = adopt(self.files, self.log, self.stream, self.held, self.clock.now_ms())
        assert isinstance(loaded, LoadedStream)
        await self.took(loaded)
        return loaded

    # -- writes

    async def write(self, request: Write) -> Committed | Stored | Duplicate:
        """Decide, install, log, flush: what is returned is acknowledged."""
        fresh = Fresh(self.clock.uuid4(), self.clock.random_bits(64), self.clock.now_ms())
        decision = decide(self.stream, request, self.session, fresh, Limits())
        if isinstance(decision, Duplicate):
            return decision
        key = owner_key(DEFAULT_USER, self.stream.chat_id)
        if not self.anchored:
            self.log.append(ANCHOR, key, self.stream.head.seq, self.held.anchor(self.stream))
            self.anchored = True
        assert isinstance(request.op, int)
        install(self.stream, self.session, request.op, decision, fresh.now_ms)
        self.op = request.op
        if isinstance(decision, Committed):
            self.held.note(decision.effects)
            self.log.append(COMMIT, key, decision.version.seq, decision.record)
        else:
            self.log.append(STORED, key, self.stream.head.seq, decision.record)
        await self.log.flush()
        return decision

    async def append(self, *texts: str) -> list[str]:
        """Messages with these texts; their ids."""
        messages = [msgspec.Raw(orjson.dumps({"name": "U", "is_user": True, "mes": text})) for text in texts]
        decision = await self.write(Append(chat="c", id=1, op=self.op + 1, base="*", messages=messages))
        assert isinstance(decision, Committed)
        ids = self.stream.chat.order()[-len(texts) :]
        for message_id in ids:
            self.acknowledged[message_id] = self.stream.chat.messages[message_id]
        return ids

    async def patch(self, message_id: str, **fields: Any) -> None:
        operations = [{"op": "add", "path": f"/{key}", "value": value} for key, value in fields.items()]
        request = Patch(
            chat="c", id=1, op=self.op + 1, base=self.stream.chat.version.integrity, message=message_id,
            patch=msgspec.Raw(orjson.dumps(operations)),
        )
        assert isinstance(await self.write(request), Committed)
        self.acknowledged[message_id] = self.stream.chat.messages[message_id]

    async def delete(self, *ids: str) -> None:
        base = self.stream.chat.version.integrity
        assert isinstance(
            await self.write(Delete(chat="c", id=1, op=self.op + 1, base=base, messages=list(ids))), Committed
        )
        for message_id in ids:
            self.acknowledged.pop(message_id, None)

    async def metadata(self, **fields: Any) -> None:
        merge = msgspec.Raw(orjson.dumps(fields))
        decision = await self.write(MetadataUpdate(chat="c", id=1, op=self.op + 1, base="*", merge=merge))
        assert isinstance(decision, Committed)

    async def state(self, namespace: str, value: Any) -> None:
        document = self.stream.states.get(namespace)
        base = document.version.integrity if document and document.data is not None and document.version else None
        request: Write
        if value is None:
            request = StateDelete(owner={"chat": "c"}, id=1, op=self.op + 1, namespace=namespace, base=base)  # type: ignore[arg-type]
        else:
            request = StateUpdate(
                owner={"chat": "c"}, id=1, op=self.op + 1, namespace=namespace, base=base,  # type: ignore[arg-type]
                set=msgspec.Raw(orjson.dumps(value)),
            )
        assert isinstance(await self.write(request), Committed)

    async def checkpoint(self) -> CheckpointDone | None:
        job = CheckpointJob.take(self.stream, self.held, self.clock.now_ms())
        if job is None:
            return None
        await self.log.flush()
        done = await checkpoint(job, self.files, self.log, self.executor, lambda: self.stream.head.seq)
        done.install(self.stream, self.held)
        await self.log.flush()
        return done

    async def killed_checkpoint(self, fs: InjectedFs, at: int, torn: float | None = None) -> bool:
        """A checkpoint that dies before call `at` of `fs`, or inside the write there with that share of it written;
        then a stop. False: it had ended before that call."""
        if torn is None:
            fs.arm(at, fs.die)
        else:
            fs.arm(at, torn=lambda size: int(size * torn))
        try:
            await self.checkpoint()
        except SimulatedCrash:
            assert fs.is_dead
        self.stop()
        return fs.reached

    async def settle(self) -> None:
        """What the keeper does: checkpoint, and adopt when somebody was there."""
        for _turn in range(5):
            try:
                await self.checkpoint()
            except OutsideEdit:
                await self.adopt()
            else:
                if not self.held.pending:
                    return
        raise AssertionError("the files never came to rest")

    def texts(self) -> list[str]:
        return [value["mes"] for value in self.stream.chat.values()]
