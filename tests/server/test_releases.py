"""What leaves an actor, as bytes."""

from __future__ import annotations

import pytest

from tellback_protocol import codec
from tellback_protocol.ids import Version
from tellback_protocol.past import Past
from tellback_server.releases import OwnCommit, Told, told_frames
from tellback_server.websocket import text_frame

OWNER = codec.chat_json("group:x")
VERSION = Version(3, 8, "00000000-0000-8000-8000-00000000000f")


def past(line: bytes) -> Past:
    front = b'"version":%b,"previous":"p","by":{"session":"s","op":1},"ops":[{"op":"append","messages":['
    return Past(VERSION, front % VERSION.encoded(), ("a",), line)


OWN = OwnCommit(b'"version":%b,"previous":"p","ops":[]' % VERSION.encoded(), VERSION)


@pytest.mark.parametrize(
    "told",
    [
        [past(b'{"id":"a"}')],
        [past(b'{"id":"a"}'), past(b'{"id":"b"}')],
        [past(b'{"id":"a"}'), OWN, past(b'{"id":"b"}')],
        [OWN, OWN],
        *[[past(b'{"id":"%b"}' % (b"x" * length)), past(b'{"id":"b"}')] for length in (3800, 3900, 4100, 70_000)],
    ],
)
def test_d3_commits_told_together_are_the_frames_of_each(told: list[Told]) -> None:
    assert told_frames(told, OWNER) == b"".join(text_frame(commit.frame(OWNER)) for commit in told)


@pytest.mark.parametrize("length", range(3880, 3896))
def test_d3_the_same_at_the_longest_header_that_is_known_by_heart(length: int) -> None:
    told: list[Told] = [past(b'{"id":"%b"}' % (b"x" * length)), OWN]
    assert told_frames(told, OWNER) == b"".join(text_frame(commit.frame(OWNER)) for commit in told)
