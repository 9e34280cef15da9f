"""The server's own small files know whether they are what was written."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.one_bit import flipped_bit, unflipped
from tellback_server.sealed import seal, unseal
from tellback_server.store.chat_index import ChatIndex
from tellback_server.store.files import DEFAULT_USER, FileStore
from tests.support.chat_desk import SilentLogger
from tests.support.damage import flips, truncations

BODY = json.dumps({"chat_id": "0b0e1f2a", "seq": 7, "text": "é ☂"}, ensure_ascii=False).encode()


def test_every_flipped_bit_is_turned_back() -> None:
    """[X12] In what is sealed, in the line end between, and in the checksum itself."""
    assert unseal(seal(BODY)) == (BODY, False)
    for what, damaged in flips(seal(BODY)):
        assert unseal(damaged) == (BODY, True), what


def test_what_is_cut_off_tells_nothing_or_the_same() -> None:
    """[X12] Without its second line a file is one of an earlier version: half a JSON text is then no JSON."""
    for what, damaged in truncations(seal(BODY)):
        found = unseal(damaged)
        assert found is None or found[0] == damaged, what
        if found is not None and found[0] != BODY:
            with pytest.raises(ValueError):
                json.loads(found[0])


@pytest.mark.parametrize("garbage", [bytes(64), b"\xe4" * 64, b"{\xff}", seal(BODY)[:20] + bytes(40)])
def test_garbage_tells_nothing_and_raises_nothing(garbage: bytes) -> None:
    """[X12]"""
    found = unseal(garbage)
    assert found is None or found == (garbage, False)


def test_which_bit_it_was() -> None:
    data = bytes(range(200))
    for bit in (0, 7, 800, 1599):
        turned = bytearray(data)
        turned[bit >> 3] ^= 1 << (bit & 7)
        wanted = zlib.crc32(data)
        assert flipped_bit(len(data), zlib.crc32(turned) ^ wanted) == bit
        assert unflipped(bytes(turned), wanted) == data
    assert flipped_bit(10, 0) is None


@pytest.mark.parametrize("head", [b"\xe4" * 40, b"{\xff}", b"", b"[1]"])
def test_an_index_of_garbage_is_rebuilt(head: bytes, tmp_path: Path) -> None:
    """[I1] Also when it is no text at all, which a decoder says in an error of another kind."""
    files = FileStore(Fs(), str(tmp_path), logger=SilentLogger())
    index = ChatIndex(files, DEFAULT_USER, Clock())
    Path(index.path).parent.mkdir(parents=True)
    Path(index.path).write_bytes(head + b"\nrest")
    assert index.look().chats == {}
