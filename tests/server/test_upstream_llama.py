"""A real model server: llama.cpp on a model with random weights.

Only when asked for: `uv pip install -r tests/requirements-upstream.txt` (it compiles llama.cpp, some minutes), then
`pytest -m real_upstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tellback_server.clock import Clock
from tellback_server.metrics import Counters
from tellback_server.upstream import Delta, UpstreamPolicy, Upstreams
from tellback_server.upstream_address import parse_upstream
from tellback_server.upstream_errors import UpstreamError, UpstreamRefused
from tests.support.tiny_model import llama_server
from tests.support.waiting import GUARD_S

pytestmark = [
    pytest.mark.real_upstream,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="tests/requirements-upstream.txt is not installed"),
]

KEY = "sk-tiny"


@contextlib.asynccontextmanager
async def llama(folder: Path, key: str = KEY) -> AsyncIterator[Upstreams]:
    async with llama_server(folder, KEY) as url:
        upstreams = Upstreams(
            [parse_upstream(f"local={url}")], keys={"local": key}, clock=Clock(), counters=Counters(),
            policy=UpstreamPolicy(first_token_timeout_s=60),
        )
        try:
            yield upstreams
        finally:
            await upstreams.close()


def body(tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "seed": 7, **more}


async def streamed(upstreams: Upstreams, **fields: Any) -> list[Delta]:
    return [delta async for delta in upstreams.stream("local", body(**fields))]


async def test_a_real_server_streams_a_reply(tmp_path: Path) -> None:
    async with llama(tmp_path) as upstreams:
        deltas = await streamed(upstreams, tokens=64)
        again = await streamed(upstreams, tokens=64)
        # A later seed may end early, but noise of 64 bytes is hardly ever empty.
        assert "".join(delta.text for delta in deltas)
        assert deltas[-1].finish_reason in ("length", "stop")
        assert "".join(delta.text for delta in deltas).encode()
        assert "".join(delta.text for delta in again) == "".join(delta.text for delta in deltas)


async def test_a_real_server_is_left_in_the_middle_and_answers_the_next(tmp_path: Path) -> None:
    async with llama(tmp_path) as upstreams:
        async with asyncio.timeout(GUARD_S), contextlib.aclosing(upstreams.stream("local", body(400))) as deltas:
            async for delta in deltas:
                if delta.text:
                    break
        assert await streamed(upstreams, tokens=4)


async def test_a_real_server_refuses_a_wrong_key_and_a_long_prompt(tmp_path: Path) -> None:
    async with llama(tmp_path) as upstreams:
        long = [{"role": "user", "content": "a b " * 2000}]
        # llama-cpp-python begins the stream before it looks at the length, and drops the connection.
        with pytest.raises(UpstreamError):
            await streamed(upstreams, tokens=4, messages=long)
        assert await streamed(upstreams, tokens=4)
        upstreams._keys["local"] = "sk-wrong"
        with pytest.raises(UpstreamRefused) as caught:
            await streamed(upstreams, tokens=4)
        assert caught.value.status == 401
        assert "sk-wrong" not in str(caught.value)
