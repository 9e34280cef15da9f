"""The fuzzing client kosoku (Autobahn's cases) against an echo server on the real gateway, on both paths.

autobahn_expected.json holds the exact verdict of each case: [message exchange, closing handshake, close code of the
server]. Any change fails, also one for the better, so that a new version of websockets cannot change what we do unseen.
To accept a change, read why, then run `python -m tests.conformance.test_autobahn` from the root of the checkout.

Verdicts that are not OK, and why they stay:

- 6.4.3, 6.4.4 NON-STRICT: invalid UTF-8 is refused at the end of its frame and not within it. A frame is taken whole,
  so nothing is delivered; only the moment of the refusal differs.
- 7.1.5 FAILED: a close frame within a fragmented message is answered by the library with 1002 ("incomplete fragmented
  message") instead of an echo of the peer's code. Both ends are closed either way; we keep the library's law.
- 7.1.6, 7.13.1, 7.13.2 INFORMATIONAL: RFC 6455 leaves the behaviour open.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from kosoku import FailureError, run_fuzzingclient

from tellback_server.http import FrontDoor
from tests.support.echo import echo_gateway

EXPECTED = Path(__file__).with_name("autobahn_expected.json")
GROUPS = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]  # 9 measures speed; 12 and 13 are compression.
CASE_COUNT = 247

Verdict = list[str | int | None]


async def verdicts(*, fast_path: bool) -> dict[str, Verdict]:
    """Run all cases and return their verdicts by case id."""
    # The fuzzing client asks for the path of its address only.
    async with echo_gateway(front_door=FrontDoor(upgrade_path="/"), fast_path=fast_path) as gateway:
        host, port = gateway.addresses[0]
        try:
            results = await run_fuzzingclient(f"ws://{host}:{port}/", GROUPS, None, concurrency=4)
        except FailureError as failure:
            results = failure.results
    return {
        result.case_id: [result.behavior.value, result.behavior_close.value, result.remote_close_code]
        for result in results
    }


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "library"])
async def test_every_case_ends_as_pinned(fast_path: bool) -> None:
    expected = json.loads(EXPECTED.read_text())
    actual = await verdicts(fast_path=fast_path)
    assert len(actual) == CASE_COUNT
    changed = {case: (expected.get(case), verdict) for case, verdict in actual.items() if expected.get(case) != verdict}
    assert changed == {}
    assert expected.keys() == actual.keys()


if __name__ == "__main__":
    lines = [
        f"{json.dumps(case)}: {json.dumps(verdict)}" for case, verdict in asyncio.run(verdicts(fast_path=False)).items()
    ]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
