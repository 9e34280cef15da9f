"""Attachments of a message: which there are, how they are shown, which one is chosen.

Rules of this module:
- It works on plain messages, in place where it says so; nothing is stored until the message is.
- What older programs wrote (`image`, `image_swipes`, `video`, `file`, a single `media`) becomes `media` and `files`,
  in the order in which they were shown, no URL twice.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

MEDIA_DISPLAYS = ("list", "gallery")


def ensure_message_media_is_array(message: MutableMapping[str, Any]) -> None:
    """Make `extra.media` and `extra.files` arrays of all attachments, in place. A message without any is left alone."""
    extra = message.get("extra")
    if not isinstance(extra, dict):
        return
    for single, many in (("file", "files"), ("media", "media")):
        value = extra.get(single)
        if single == many:
            if value is not None and not isinstance(value, list):
                extra[many] = [value] if value else []
        elif single in extra:
            del extra[single]
            extra[many] = [*_array(extra.get(many)), *([value] if value else [])]
    image = extra.get("image")
    swipes = extra.get("image_swipes")
    if isinstance(swipes, list):
        del extra["image_swipes"]
        urls = [url for url in swipes if isinstance(url, str) and url]
        extra["media"] = [*_array(extra.get("media")), *({"type": "image", "url": url} for url in urls)]
        if urls:
            extra["media_display"] = "gallery"
    for kind in ("image", "video"):
        if kind not in extra:
            continue
        url = extra.pop(kind)
        extra["media"] = [
            *_array(extra.get("media")), *([{"type": kind, "url": url}] if isinstance(url, str) and url else [])
        ]
    if isinstance(extra.get("media"), list):
        extra["media"] = _each_once(extra["media"])
        chosen = [index for index, media in enumerate(extra["media"]) if _url(media) == image]
        if image and chosen and extra.get("media_display") == "gallery":
            extra["media_index"] = chosen[0]


def get_media_display(message: Mapping[str, Any], default: str = "list") -> str:
    """`list` or `gallery`: the message's own wish, else `default`."""
    extra = message.get("extra")
    own = extra.get("media_display") if isinstance(extra, Mapping) else None
    value = own or default
    return value if value in MEDIA_DISPLAYS else "list"


def get_media_index(message: Mapping[str, Any]) -> int:
    """Which attachment is chosen; 0 when the message says nothing usable."""
    extra = message.get("extra")
    media = extra.get("media") if isinstance(extra, Mapping) else None
    index = extra.get("media_index") if isinstance(extra, Mapping) else None
    if not isinstance(media, list) or isinstance(index, bool) or not isinstance(index, int):
        return 0
    return index if 0 <= index < len(media) else 0


def _array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _url(media: Any) -> Any:
    return media.get("url") if isinstance(media, dict) else None


def _each_once(media: list[Any]) -> list[Any]:
    seen: set[str] = set()
    kept: list[Any] = []
    for one in media:
        url = _url(one)
        if isinstance(url, str):
            if url in seen:
                continue
            seen.add(url)
        kept.append(one)
    return kept
