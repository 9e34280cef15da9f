"""Logging: the one place that decides how log lines look. They go to stderr; stdout belongs to the answer of a command.

Rules this module keeps:

- One event is one line. What came from a peer or a file name is escaped (every character that is not printable) and cut
  to 256 characters, whoever logs it: forged lines, coloured terminals and full disks end here (RELIABILITY, abuse row
  "logs").
- A field whose name says secret is never shown. This is the second fence; the first is that nobody logs one.
- Tracebacks carry no local variables, because a local may be a token.
- A line that cannot be written is dropped: a closed stderr must not stop a server.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

from tellback_protocol.moments import utc_text
from tellback_server.clock import Clock
from tellback_server.http import LOG_FIELD_CHARACTERS_MAX

__all__ = ["configure_logging", "escaped", "escaped_lines"]

_TRACEBACK_CHARACTERS_MAX: Final = 16 << 10
_LIST_ITEMS_MAX: Final = 8
_SECRET: Final = re.compile(r"token|secret|password|authorization|cookie|credential|jwt", re.IGNORECASE)
_UNESCAPED: Final = ("exception", "timestamp", "level")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_JOINERS: Final = "\u200c\u200d"
"""They stand inside emoji and words of some scripts, and do nothing by themselves."""

Event = MutableMapping[str, Any]


def escaped(text: str, characters_max: int = LOG_FIELD_CHARACTERS_MAX) -> str:
    """`text` without a character that a terminal or a line-based reader could act on, cut to `characters_max`."""
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() or character in _JOINERS
            else character.encode("unicode_escape").decode("ascii")
            for character in text[:characters_max]
        )
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def escaped_lines(text: str) -> str:
    """As `escaped`, uncut, of a text whose line ends are meant."""
    return "\n".join(escaped(line, 12 * len(line) + 1) for line in text.split("\n"))


def configure_logging(
    level: str = "info",
    log_format: Literal["auto", "json", "console"] = "auto",
    *,
    stream: TextIO | None = None,
    clock: Clock | None = None,
    for_good: bool = False,
) -> None:
    """Sends every log line of the process to `stream` (stderr). `for_good`: what has logged once is bound to it, which
    is faster; for a process that sets this up once, before the first line.
    """
    stream = stream if stream is not None else sys.stderr
    is_terminal = stream is not None and stream.isatty()
    is_console = log_format == "console" or (log_format == "auto" and is_terminal)
    render: structlog.types.Processor
    if is_console:
        render = structlog.dev.ConsoleRenderer(
            colors=is_terminal, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    else:
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _timestamp(clock if clock is not None else Clock()),
            structlog.processors.format_exc_info,
            _fence,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(_Forgiving(stream)),  # type: ignore[arg-type]
        cache_logger_on_first_use=for_good,
    )
    # The standard library's loggers: asyncio reports lost exceptions there. Never below WARNING, because websockets
    # logs frame contents at DEBUG, and a hello carries a token.
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(logging.WARNING)


class _Forgiving:
    """A stream whose writing never fails. None is the stderr of a process that was started without one."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is None:
            return 0
        with contextlib.suppress(OSError, ValueError):
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                return self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        return 0

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


class _ToStructlog(logging.Handler):
    """Gives the lines of the standard library's loggers our form."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )


def _timestamp(clock: Clock) -> Callable[[Any, str, Event], Event]:
    def add(_logger: Any, _method: str, event: Event) -> Event:
        event["timestamp"] = utc_text(clock.now_ms())
        return event

    return add


def _fence(_logger: Any, _method: str, event: Event) -> Event:
    """Escapes, cuts and hides."""
    for name, value in list(event.items()):
        if name == "exception":
            event[name] = str(value)[-_TRACEBACK_CHARACTERS_MAX:]
        elif name in _UNESCAPED or value is None or isinstance(value, (bool, int, float)):
            continue
        elif name != "event" and _SECRET.search(name):
            event[name] = "[hidden]"
        elif isinstance(value, (list, tuple)) and len(value) <= _LIST_ITEMS_MAX:
            event[name] = [_fenced(item) for item in value]
        else:
            event[name] = _fenced(value)
    return event


def _fenced(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, bytes):
        return escaped(value[: LOG_FIELD_CHARACTERS_MAX + 1].decode("utf-8", "backslashreplace"))
    return escaped(repr(value))
