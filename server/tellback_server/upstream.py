"""Upstreams: the model servers of the settings, and a reply streamed from one of them.

    stream      body -> POST <url>/chat/completions -> bytes (sse) -> events (completions) -> Delta, Delta, ...

Rules this module keeps:

- `stream: true` and the headers are the server's; everything else in the body is the client's and goes out as it came.
- Tried again only before the first delta: a connection that fails, 429, 5xx and an answer that ended empty; a bounded
  number of times, with jitter, and never past the deadline of the first token. `Retry-After` is obeyed, or, where it
  leads past the deadline, told. After the first delta never: what was read aloud cannot be taken back.
- Everything that was received is handed out before the error is raised.
- Whoever cancels the task, or closes the generator, closes the connection: a model that nobody listens to costs money.
- Silence is measured in tokens, not in bytes: comments that keep a connection alive do not keep a generation alive.
- Redirects are not followed and cookies not kept: the key goes where the settings say, and one user's reply leaves
  nothing for another's.
- Key and URL are in no log line, error, metric or frame. What an upstream writes in an error is cut, escaped and
  searched for the key first.
- Loads the HTTP client: import it only where an upstream is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import http
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import httpx2
import msgspec
import orjson
import structlog

from tellback_server.clock import Clock
from tellback_server.completions import CompletionReader, Delta, ErrorInside, NotACompletion, error_in
from tellback_server.config import Settings
from tellback_server.logging_setup import escaped
from tellback_server.metrics import Counters, version
from tellback_server.sse import SseEvent, SseParser, SseTooLarge
from tellback_server.upstream_address import Upstream
from tellback_server.upstream_errors import (
    UnknownUpstream,
    UpstreamBad,
    UpstreamCut,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)

__all__ = ["Delta", "UpstreamPolicy", "Upstreams"]

log = structlog.get_logger()

EVENT_BYTES_MAX: Final = 1 << 20
"""One event; a token is some hundred bytes. A reply that does not stream comes as one JSON of at most this."""

ANSWER_BYTES_MAX: Final = 64 << 20
"""All bytes of one answer: 10,000 tokens are about 3 MB of events."""

REFUSAL_BYTES_MAX: Final = 64 << 10
"""Of the body of an error; the rest is not read."""

MESSAGE_CHARACTERS_MAX: Final = 300
"""Of what an upstream writes in an error."""

KEEPALIVE_CONNECTIONS_MAX: Final = 16
REFUSAL_TIMEOUT_S: Final = 5.0
RETRY_PAUSE_S: Final = 0.5
"""Before the first retry, doubled for each further one; the real pause lies between half of it and all of it."""

AFTER_FINISH_TIMEOUT_S: Final = 5.0
"""How long a stream may stay open after a finish reason, for the usage and `[DONE]`. Then the reply is whole anyway."""

_EVENT_STREAM_TYPES: Final = frozenset({"", "text/event-stream", "text/plain", "application/x-ndjson"})
_JSON_TYPE: Final = "application/json"


class UpstreamPolicy(msgspec.Struct, frozen=True):
    """How long to wait, and how often to try again."""

    connect_timeout_s: float = 10.0
    first_token_timeout_s: float = 300.0
    """From the call to the first delta, retries included."""
    token_timeout_s: float = 60.0
    retries_max: int = 2
    retry_pause_s: float = RETRY_PAUSE_S
    after_finish_timeout_s: float = AFTER_FINISH_TIMEOUT_S


class Upstreams:
    """All model servers of one server, and the connections to them. Lives in one event loop; `close` ends it."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        keys: Mapping[str, str],
        clock: Clock,
        counters: Counters,
        policy: UpstreamPolicy | None = None,
    ) -> None:
        """`keys` has the keys of those upstreams, by name, that need one."""
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        self._keys = dict(keys)
        self._clock = clock
        self._counters = counters
        self._policy = policy or UpstreamPolicy()
        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=KEEPALIVE_CONNECTIONS_MAX),
            # Own deadlines, by tokens; only connecting is the client's.
            timeout=httpx2.Timeout(None, connect=self._policy.connect_timeout_s),
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    @classmethod
    def configured(
        cls, settings: Settings, keys: Mapping[str, str], *, clock: Clock, counters: Counters
    ) -> Upstreams:
        """The upstreams of the settings."""
        for upstream in settings.upstreams:
            if upstream.name in keys and not upstream.is_private:
                meaning = "The key goes over the network as plain text. Use https."
                log.warning("upstream-key-in-clear", upstream=upstream.name, meaning=meaning)
        policy = UpstreamPolicy(
            connect_timeout_s=settings.upstream_connect_timeout_s,
            first_token_timeout_s=settings.upstream_first_token_timeout_s,
            token_timeout_s=settings.upstream_token_timeout_s,
            retries_max=settings.upstream_retries_max,
        )
        return cls(settings.upstreams, keys=keys, clock=clock, counters=counters, policy=policy)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `stream` takes."""
        return tuple(self._upstreams)

    async def close(self) -> None:
        """Close every connection, also those in use."""
        await self._client.aclose()

    async def stream(self, name: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        """A reply to `body`, delta by delta. Use it in `contextlib.aclosing`, which closes the connection at once.

        Raises: UnknownUpstream before anything is sent; UpstreamError.
        """
        if name not in self._upstreams:
            raise UnknownUpstream(name, self.names)
        counters, policy = self._counters, self._policy
        content = orjson.dumps({**body, "stream": True})
        counters.upstream_requests += 1
        started_s = self._clock.monotonic_s()
        deadline_s = asyncio.get_running_loop().time() + policy.first_token_timeout_s
        has_begun = False
        tries = 0
        while True:
            try:
                async with contextlib.aclosing(self._try(self._upstreams[name], content, deadline_s)) as deltas:
                    async for delta in deltas:
                        if not has_begun:
                            has_begun = True
                            counters.upstream_first_token_s.append(self._clock.monotonic_s() - started_s)
                        counters.upstream_deltas += 1
                        yield delta
                return
            except UpstreamError as error:
                pause_s = None if has_begun else self._pause_s(error, tries, deadline_s)
                if pause_s is None:
                    counters.upstream_failed(error.kind)
                    raise
                log.info("upstream-retry", upstream=name, kind=error.kind, error=str(error), pause_s=round(pause_s, 3))
            tries += 1
            counters.upstream_retries += 1
            await asyncio.sleep(pause_s)

    def _pause_s(self, error: UpstreamError, tries: int, deadline_s: float) -> float | None:
        """How long to wait before the next try; None when there is none."""
        if not error.is_transient or tries >= self._policy.retries_max:
            return None
        longest_s = self._policy.retry_pause_s * 2**tries
        pause_s = longest_s * (1 + self._clock.random_bits(16) / 65536) / 2
        if isinstance(error, UpstreamRefused) and error.retry_after_s is not None:
            # Never earlier than told; the jitter keeps those who were told the same from coming at once.
            pause_s += error.retry_after_s
        return pause_s if asyncio.get_running_loop().time() + pause_s < deadline_s else None

    # -- one try -----------------------------------------------------------------------------------------------------

    async def _try(self, upstream: Upstream, content: bytes, deadline_s: float) -> AsyncGenerator[Delta, None]:
        response = await self._answer(upstream, content, deadline_s)
        try:
            await self._check_answer(upstream, response)
            reader = CompletionReader()
            try:
                async with contextlib.aclosing(self._events(upstream, response, reader, deadline_s)) as events:
                    async for event in events:
                        delta = self._read(upstream, reader, event)
                        if delta is not None:
                            yield delta
                        if reader.is_done:
                            break
            except UpstreamError:
                rest = reader.rest()
                if rest is not None:
                    yield rest
                raise
            rest = reader.rest()
            if rest is not None:
                yield rest
            if not reader.has_finished:
                raise UpstreamCut(upstream.name)
        finally:
            await response.aclose()

    async def _answer(self, upstream: Upstream, content: bytes, deadline_s: float) -> httpx2.Response:
        """The head of the answer; its body is not read yet."""
        headers = {
            "Accept": "text/event-stream",
            # A packed stream arrives in blocks, and a small one can unpack to any size.
            "Accept-Encoding": "identity",
            "Content-Type": _JSON_TYPE,
            "User-Agent": f"tellback/{version()}",
        }
        key = self._keys.get(upstream.name)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = self._client.build_request("POST", upstream.completions_url, content=content, headers=headers)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._client.send(request, stream=True)
        except TimeoutError:
            raise UpstreamTimeout(upstream.name, "first-token", self._policy.first_token_timeout_s) from None
        except httpx2.ConnectTimeout:
            raise UpstreamTimeout(upstream.name, "connect", self._policy.connect_timeout_s) from None
        except httpx2.RemoteProtocolError as error:
            if "disconnected" in str(error):
                raise UpstreamUnreachable(upstream.name) from None
            raise UpstreamBad(upstream.name, "its answer is not HTTP") from None
        except httpx2.TransportError:
            raise UpstreamUnreachable(upstream.name) from None

    async def _check_answer(self, upstream: Upstream, response: httpx2.Response) -> None:
        status = response.status_code
        if 300 <= status <= 399:
            raise UpstreamRefused(upstream.name, status, "it is at another address now")
        if status != http.HTTPStatus.OK:
            message = await self._refusal(response)
            raise UpstreamRefused(upstream.name, status, self._safe(upstream, message), self._retry_after_s(response))
        kind = _content_type(response)
        if kind not in _EVENT_STREAM_TYPES and kind != _JSON_TYPE:
            raise UpstreamBad(upstream.name, f"its type is {escaped(kind, 64)}")
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UpstreamBad(upstream.name, "it is compressed")

    async def _events(
        self, upstream: Upstream, response: httpx2.Response, reader: CompletionReader, deadline_s: float
    ) -> AsyncGenerator[SseEvent, None]:
        """The events of an answer. A JSON answer is one event, and whole."""
        is_json = _content_type(response) == _JSON_TYPE
        parser = SseParser(EVENT_BYTES_MAX)
        body: list[bytes] = []
        received_bytes = 0
        loop = asyncio.get_running_loop()
        is_cut = False
        async with contextlib.aclosing(_chunks(response)) as chunks:
            while True:
                try:
                    async with asyncio.timeout_at(deadline_s):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    if reader.has_finished:
                        return
                    if reader.has_begun:
                        raise UpstreamTimeout(upstream.name, "between-tokens", self._policy.token_timeout_s) from None
                    raise UpstreamTimeout(upstream.name, "first-token", self._policy.first_token_timeout_s) from None
                except httpx2.TransportError:
                    # Cut by the network. The last event may be whole but for its blank line.
                    chunk = None
                    is_cut = True
                if chunk is None:
                    break
                received_bytes += len(chunk)
                if received_bytes > (EVENT_BYTES_MAX if is_json else ANSWER_BYTES_MAX):
                    raise UpstreamBad(upstream.name, "it is too large")
                if is_json:
                    body.append(chunk)
                    continue
                try:
                    events = parser.feed(chunk)
                except SseTooLarge as error:
                    raise UpstreamBad(upstream.name, str(error)) from None
                for event in events:
                    yield event
                if events and (reader.has_begun or reader.has_finished):
                    silence_s = self._policy.token_timeout_s
                    if reader.has_finished:
                        silence_s = min(silence_s, self._policy.after_finish_timeout_s)
                    deadline_s = loop.time() + silence_s
        if is_json:
            if is_cut:
                raise UpstreamCut(upstream.name)
            yield SseEvent(b"".join(body))
            reader.has_finished = True
            return
        with contextlib.suppress(SseTooLarge):
            for event in parser.finish():
                if _is_whole(event):
                    yield event

    def _read(self, upstream: Upstream, reader: CompletionReader, event: SseEvent) -> Delta | None:
        try:
            return reader.read(event)
        except ErrorInside as error:
            raise UpstreamRefused(upstream.name, error.status, self._safe(upstream, error.message)) from None
        except NotACompletion:
            raise UpstreamBad(upstream.name, "an event is no chat completion in JSON") from None

    # -- refusals ----------------------------------------------------------------------------------------------------

    async def _refusal(self, response: httpx2.Response) -> str:
        """What the body of an error says; the phrase of the status when it says nothing."""
        body = b""
        with contextlib.suppress(TimeoutError, httpx2.TransportError):
            async with asyncio.timeout(REFUSAL_TIMEOUT_S), contextlib.aclosing(_chunks(response)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > REFUSAL_BYTES_MAX:
                        break
        message = ""
        with contextlib.suppress(ValueError):
            value = orjson.loads(body)
            if isinstance(value, dict):
                # {"error": ...} as OpenAI, or {"detail": ...} as FastAPI.
                error = error_in(value) or error_in({"error": value})
                message = error.message if error is not None else ""
        if not message and _content_type(response) == "text/plain":
            message = body.decode("utf-8", "replace")
        if not message:
            with contextlib.suppress(ValueError):
                message = http.HTTPStatus(response.status_code).phrase
        return message

    def _safe(self, upstream: Upstream, message: str) -> str:
        for key in self._keys.values():
            message = message.replace(key, "[hidden]")
        return escaped(message.strip(), MESSAGE_CHARACTERS_MAX)

    def _retry_after_s(self, response: httpx2.Response) -> float | None:
        """Seconds from the header, which has them or a date (RFC 9110 section 10.2.3)."""
        text = response.headers.get("retry-after", "").strip()
        if not text:
            return None
        with contextlib.suppress(ValueError, OverflowError):
            return min(max(0.0, float(text)), 1e9)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            moment = email.utils.parsedate_to_datetime(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            return max(0.0, moment.timestamp() - self._clock.now_ms() / 1000)
        return None


def _content_type(response: httpx2.Response) -> str:
    value: str = response.headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()


async def _chunks(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    raw: AsyncIterator[bytes] = response.aiter_raw()
    async for chunk in raw:
        yield chunk


def _is_whole(event: SseEvent) -> bool:
    """Whether an event at the very end is complete: half of a JSON is what a cut leaves."""
    if event.data.strip() == b"[DONE]":
        return True
    try:
        orjson.loads(event.data)
    except ValueError:
        return False
    return True
