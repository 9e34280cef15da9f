"""What the process logs, caught in a test, and the logging of before put back behind it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Literal

import structlog

from tellback_server.logging_setup import configure_logging

__all__ = ["caught_logs", "logging_restored"]


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@contextlib.contextmanager
def caught_logs(level: str = "debug", log_format: Literal["json", "console"] = "json") -> Iterator[io.StringIO]:
    """The stream every line goes to."""
    stream = io.StringIO()
    with logging_restored():
        configure_logging(level, log_format, stream=stream)
        yield stream
