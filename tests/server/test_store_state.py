"""What a store is told of a chat beside the chat itself: lists, and the header line."""

from __future__ import annotations

import json

import msgspec
import pytest

from tellback_protocol.ids import CharacterChat, Version
from tellback_server.store.filed import from_files, parse_chat_of
from tellback_server.store.store_state import HEADER_BYTES_MAX, decode_listing, image_of

PLACE = CharacterChat("A", "x")
FIELDS = {"user_name": "U", "chat_metadata": {"note": "ü" * HEADER_BYTES_MAX, "odd": 1.5}, "more": [1]}
COMPACT = json.dumps(FIELDS, ensure_ascii=False, separators=(",", ":")).encode()
SPACED = json.dumps(FIELDS).encode()
TWICE = COMPACT.replace(b'"more"', b'"user_name":"V","more"')


@pytest.mark.parametrize(("header", "is_short"), [(COMPACT, True), (SPACED, False), (TWICE, False)])
def test_a_long_header_comes_back_as_it_was_ie10(header: bytes, is_short: bool) -> None:
    """[IE10]: out of a list's entry and the metadata beside it; once these are others, it is written anew."""
    value = from_files(
        PLACE, parse_chat_of(PLACE, header + b"\n"), {}, chat_id="c", version=Version(1, 0, "v"), now_ms=7
    )
    listing = decode_listing(value.summary)
    assert (len(value.summary) < HEADER_BYTES_MAX) == is_short
    image = image_of(PLACE, listing, value.metadata)
    assert (image.header, image.metadata) == (header, value.metadata)
    other = image_of(PLACE, listing, b'{"note":"other"}')
    assert (other.metadata == b'{"note":"other"}', other.header == header) == (False, not is_short)


def test_a_list_entry_of_an_earlier_version_is_understood_ie10() -> None:
    """[IE10]: its header is without the metadata and does not tell what it was."""
    listing = decode_listing(msgspec.json.encode({"header": '{"user_name":"U","chat_metadata":{}}'}))
    image = image_of(PLACE, listing, b'{"note":"long"}')
    assert (image.header, image.metadata) == (b'{"user_name":"U","chat_metadata":{}}', b"{}")
