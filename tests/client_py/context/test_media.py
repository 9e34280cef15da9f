"""The data half of the media helpers, and other things that live in memory only."""

from __future__ import annotations

from typing import Any

import pytest

from tellback_client.context import (
    ExtensionPrompt,
    ensure_message_media_is_array,
    get_media_display,
    get_media_index,
)
from tellback_client.context.prompts import ExtensionPrompts
from tellback_client.context.system_messages import SYSTEM_MESSAGE_TYPES, system_message


def image(url: str) -> dict[str, Any]:
    return {"type": "image", "url": url}


@pytest.mark.parametrize(("before", "after"), [
    ({}, {}),
    ({"image": "a.png"}, {"media": [image("a.png")]}),
    ({"image": ""}, {"media": []}),
    ({"video": "a.mp4", "image": "a.png"}, {"media": [image("a.png"), {"type": "video", "url": "a.mp4"}]}),
    ({"file": {"url": "x"}}, {"files": [{"url": "x"}]}),
    ({"file": None, "files": [{"url": "x"}]}, {"files": [{"url": "x"}]}),
    ({"media": image("a.png")}, {"media": [image("a.png")]}),
    (
        {"image": "b.png", "image_swipes": ["a.png", "b.png", "", 7]},
        {"media": [image("a.png"), image("b.png")], "media_display": "gallery", "media_index": 1},
    ),
    ({"image_swipes": []}, {"media": []}),
    ({"media": [image("a.png")], "image": "a.png"}, {"media": [image("a.png")]}),
    ({"media": [image("a.png"), image("a.png"), {"odd": 1}]}, {"media": [image("a.png"), {"odd": 1}]}),
])
def test_media_become_arrays_once(before: dict[str, Any], after: dict[str, Any]) -> None:
    message = {"mes": "x", "extra": before}
    ensure_message_media_is_array(message)
    assert message == {"mes": "x", "extra": after}
    ensure_message_media_is_array(message)
    assert message == {"mes": "x", "extra": after}


@pytest.mark.parametrize("message", [{}, {"extra": None}, {"extra": []}, {"extra": "text"}])
def test_a_message_without_extra_is_left_alone(message: dict[str, Any]) -> None:
    before = dict(message)
    ensure_message_media_is_array(message)
    assert message == before
    assert get_media_index(message) == 0
    assert get_media_display(message) == "list"


def test_display_and_index_are_always_usable() -> None:
    media = [image("a"), image("b")]
    for index, expected in ((0, 0), (1, 1), (2, 0), (-1, 0), ("1", 0), (True, 0), (None, 0), (1.0, 0)):
        assert get_media_index({"extra": {"media": media, "media_index": index}}) == expected
    assert get_media_index({"extra": {"media_index": 1}}) == 0
    assert get_media_display({"extra": {"media_display": "gallery"}}) == "gallery"
    assert get_media_display({"extra": {"media_display": "cube"}}) == "list"
    assert get_media_display({"extra": {}}, "gallery") == "gallery"


def test_extension_prompts_are_set_replaced_and_taken_away() -> None:
    prompts = ExtensionPrompts()
    view = prompts.view
    prompts.set("a", ExtensionPrompt("one", 1, 0))
    prompts.set("a", ExtensionPrompt("two", 1, 4, True, 2))
    prompts.set("b", ExtensionPrompt("", 1, 4))
    assert dict(view) == {"a": ExtensionPrompt("two", 1, 4, True, 2)}
    with pytest.raises(TypeError):
        view["a"] = ExtensionPrompt("x", 0, 0)  # type: ignore[index]
    prompts.set("a", ExtensionPrompt("", 0, 0))
    assert not view
    for wrong in ((3, 0, 0), (1, -1, 0), (1, 1.5, 0), (1, True, 0), (1, 0, 3)):
        with pytest.raises(ValueError):
            prompts.set("a", ExtensionPrompt("x", wrong[0], wrong[1], role=wrong[2]))  # type: ignore[arg-type]


def test_system_messages_have_a_known_type() -> None:
    assert len(SYSTEM_MESSAGE_TYPES) == 13
    message = system_message("GENERIC", "loaded", {"x": 1}, "now")
    assert message == {
        "name": "System", "is_user": False, "is_system": True, "send_date": "now", "mes": "loaded",
        "extra": {"x": 1, "type": "generic"},
    }
    assert system_message("slash_commands", "", None, "now")["extra"] == {"type": "slash_commands"}
    for wrong in ("NOPE", "", None):
        with pytest.raises(ValueError, match="GENERIC"):
            system_message(wrong, "x", None, "now")  # type: ignore[arg-type]
