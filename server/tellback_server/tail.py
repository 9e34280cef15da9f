"""Tail: what a chat tells, one line a piece of news, and replies as they are written. A small client of its own.

Rules this module keeps:

- It only reads: it opens one chat and never sends a write.
- It keeps the last version it saw and opens again from there, so a lost connection leaves no gap.
- Whatever stands in a chat may come from anybody: nothing reaches the terminal that could move its cursor.

The client package is not used: server and client never import each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

import msgspec
import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from tellback_protocol.codec import decode_server
from tellback_protocol.effects import (
    AppendEffect,
    DeletedEffect,
    DeleteEffect,
    Effect,
    FloorEffect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
)
from tellback_protocol.frames import (
    PROTOCOL,
    SUBPROTOCOL,
    Behind,
    Error,
    GenerationDeltaFrame,
    GenerationStarted,
    IntegrityFrame,
    Opened,
    Reset,
    SnapshotPart,
    Welcome,
)
from tellback_protocol.generation_requests import GenerationError
from tellback_protocol.generations import NAMESPACE as GENERATIONS
from tellback_protocol.ids import Version, parse_chat
from tellback_server.clock import Clock
from tellback_server.live_texts import Growth, LiveTexts
from tellback_server.logging_setup import escaped, escaped_lines

__all__ = ["News", "TailRefused", "TailUnreachable", "news_of", "tail_chat"]

RECONNECT_S: Final = 1.0
_SUBPROTOCOL: Final = Subprotocol(SUBPROTOCOL)
TEXT_CHARACTERS_MAX: Final = 2000
NAME_CHARACTERS_MAX: Final = 200
_FINAL_CODES: Final = range(4500, 5000)
"""Close codes that mean: do not come back (DESIGN section 5)."""


class News(msgspec.Struct, frozen=True):
    """One line: `what` happened, `who` is the speaker of a message, `text` is safe for a terminal."""

    what: str
    text: str
    who: str = ""
    was_read: bool = False
    """Its text was given already, as it was written."""
    growth: Growth | None = None
    """More of a reply (`writing`): no line of its own, but the end of one."""


class TailRefused(Exception):
    """The server will not show this chat; trying again would not help."""


class TailUnreachable(TailRefused):
    """There is no server at the URL, and none was there before."""


async def tail_chat(
    url: str, chat: str, token: str | None, messages_shown: int, *, wait: bool = False
) -> AsyncIterator[News]:
    """News of `chat` until the caller stops or the server refuses. Once it was connected it connects again for ever;
    with `wait` also before.

    Raises: TailRefused, TailUnreachable.
    """
    address = parse_chat(chat)
    if isinstance(address, str):
        raise TailRefused(f"{escaped(chat, NAME_CHARACTERS_MAX)!r} names no chat: {address}")
    session = Clock().uuid4()
    since: Version | None = None
    has_all = True  # False while parts of a snapshot are on their way.
    live = LiveTexts()
    while True:
        if not has_all:
            since, has_all = None, True
        try:
            async with connect(url, subprotocols=[_SUBPROTOCOL], max_size=None, compression=None) as socket:
                hello = {"type": "hello", "protocol": PROTOCOL, "session": session, "token": token, "client": "tail"}
                await socket.send(orjson.dumps(hello), text=True)
                opening = {"type": "open", "id": 1, "chat": chat, "since": _plain(since)}
                if since is None:
                    opening["tail"] = messages_shown
                async for data in socket:
                    frame = decode_server(data.encode() if isinstance(data, str) else data)
                    for line in _growth_news(live, frame):
                        yield line
                    for one_id in sorted(live.gaps):
                        attach = {"type": "generation-attach", "chat": chat, "generation": one_id}
                        await socket.send(orjson.dumps(attach), text=True)
                    live.gaps.clear()
                    match frame:
                        case Welcome():
                            wait = True
                            await socket.send(orjson.dumps(opening), text=True)
                            yield News("connected", f"{url} as {escaped(frame.user)}")
                        case Opened() if frame.mode != "replay":
                            since = frame.head
                            has_all = not isinstance(frame.parts, int)
                            for line in _opened_news(frame):
                                yield line
                        case SnapshotPart():
                            has_all = frame.part >= frame.of
                            for raw in frame.messages:
                                yield _message_news("message", bytes(raw))
                        case IntegrityFrame():
                            since = frame.version
                            for line in _committed_news(frame, live):
                                yield line
                        case Reset():
                            since = None
                            yield News("reset", f"the chat was replaced: {frame.reason}{_kept(frame)}")
                            break
                        case Behind():
                            yield News("behind", "this terminal was too slow; catching up")
                            break
                        case Error() if frame.retry == "backoff":
                            yield News("lost", f"{escaped(frame.message)} Trying again")
                            break
                        case Error() if frame.id == 1 or frame.retry == "after-auth":
                            raise TailRefused(f"{frame.code}: {escaped(frame.message)}")
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else CloseCode.ABNORMAL_CLOSURE
            if code in _FINAL_CODES:
                reason = error.rcvd.reason if error.rcvd is not None else ""
                raise TailRefused(f"closed by the server: {code} {escaped(reason)}") from None
            yield News("lost", f"the connection ended ({int(code)}); trying again")
        except InvalidURI as error:
            raise TailRefused(f"--url {escaped(error.uri)}: {error.msg}") from None
        except InvalidStatus as error:
            body = (error.response.body or b"").decode("utf-8", "replace").strip()
            raise TailRefused(f"{error.response.status_code} {escaped(body)}") from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            reason = f"cannot connect to {escaped(url)}: {escaped(str(error) or 'no answer in time')}"
            if not wait:
                raise TailUnreachable(reason) from None
            yield News("lost", f"{reason}; trying again")
        await asyncio.sleep(RECONNECT_S)


def _growth_news(live: LiveTexts, frame: object) -> Iterator[News]:
    """More text of replies."""
    match frame:
        case Opened():
            growths = live.opened(frame)
        case GenerationStarted():
            growths = live.started(frame)
        case GenerationDeltaFrame():
            growths = live.delta(frame)
        case _:
            return
    yield from map(_writing, growths)


def _writing(growth: Growth) -> News:
    return News("writing", escaped_lines(growth.text), escaped(growth.who, 64), growth=growth)


def _committed_news(frame: IntegrityFrame, live: LiveTexts) -> Iterator[News]:
    """A commit; what generations came to is told in one line each, behind what it changed."""
    ended, growths, given = live.committed(frame)
    yield from map(_writing, growths)
    for effect in frame.ops:
        if isinstance(effect, StateEffect) and effect.namespace == GENERATIONS:
            continue
        ids = _ids_of(effect)
        for line in news_of(effect):
            yield msgspec.structs.replace(line, was_read=bool(ids) and ids <= given)
    for one_id, entry in ended.items():
        why = f": {escaped(entry.error.message)}" if isinstance(entry.error, GenerationError) else ""
        kept = "the reply is in the chat" if entry.is_stored else "there was no text"
        yield News(entry.state, f"{kept}{why}", escaped(live.who(one_id), 64))


def _ids_of(effect: Effect) -> set[str]:
    """The messages that an effect brings or changes."""
    if isinstance(effect, PatchEffect):
        return {effect.message}
    if isinstance(effect, AppendEffect | InsertEffect):
        return {msgspec.json.decode(raw)["id"] for raw in effect.messages}
    return set()


def _kept(frame: Reset) -> str:
    """Where what was replaced is now."""
    where = [escaped(name) for name in frame.recovered] if isinstance(frame.recovered, list) else []
    if frame.kept is True:
        where.append("backups/tellback")
    return f"; what was replaced is in {', '.join(where)}" if where else ""


def _plain(version: Version | None) -> dict[str, object] | None:
    return None if version is None else msgspec.structs.asdict(version)


def _opened_news(frame: Opened) -> Iterator[News]:
    count = frame.count if isinstance(frame.count, int) else 0
    if frame.mode == "current":
        yield News("opened", "nothing was missed")
        return
    version = frame.version if isinstance(frame.version, Version) else frame.head
    yield News("opened", f"{count} messages, version {version.epoch}.{version.seq}")
    if isinstance(frame.messages, list):
        for raw in frame.messages:
            yield _message_news("message", bytes(raw))


def news_of(effect: Effect) -> Iterator[News]:
    """What an effect means to a reader."""
    match effect:
        case AppendEffect(messages=messages):
            for raw in messages:
                yield _message_news("new", bytes(raw))
        case InsertEffect(messages=messages):
            for raw in messages:
                yield _message_news("inserted", bytes(raw))
        case PatchEffect(message=message, patch=patch):
            yield News("changed", f"{escaped(message)} {_cut(bytes(patch))}")
        case DeleteEffect(messages=gone):
            yield News("deleted", escaped(", ".join(gone), TEXT_CHARACTERS_MAX))
        case MetadataEffect(patch=patch):
            yield News("metadata", _cut(bytes(patch)))
        case StateEffect(namespace=namespace):
            verb = "deleted" if effect.deleted is True else "changed"
            yield News("floor" if isinstance(effect, FloorEffect) else "state", f"{escaped(namespace)} {verb}")
        case RenamedEffect(to=to):
            yield News("renamed", f"it is called {escaped(to)} now")
        case DeletedEffect():
            yield News("deleted", "it is in the trash")


def _cut(data: bytes) -> str:
    return escaped(data[: TEXT_CHARACTERS_MAX * 4].decode("utf-8", "replace"), TEXT_CHARACTERS_MAX)


def _message_news(what: str, data: bytes) -> News:
    """A message in one of the shapes that clients use; one that cannot be read is shown as it is."""
    try:
        message = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return News(what, _cut(data))
    who = message.get("name") or message.get("role") or ""
    text = message.get("mes", message.get("content", ""))
    shown = text if isinstance(text, str) else repr(text)
    lines = "\n".join(escaped(line, TEXT_CHARACTERS_MAX) for line in shown[:TEXT_CHARACTERS_MAX].split("\n"))
    return News(what, lines, escaped(str(who), 64))
