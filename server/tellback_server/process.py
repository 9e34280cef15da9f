"""Process: what stands around the App in a process of its own: umask, descriptors, event loop, signals, first line.

Rules this module keeps:

- The first line on stdout is the URL, written when clients can connect; nothing else ever goes there.
- The first SIGTERM or SIGINT asks for an orderly end, the second ends at once: a kill is always safe, only slower to
  recover from.
- A server that was started without stdin, stdout or stderr is a server like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from tellback_server.config import Settings, unknown_variables
from tellback_server.gateway import FILES_RESERVED
from tellback_server.logging_setup import configure_logging

__all__ = ["EXIT_INTERRUPTED", "Stoppable", "run_server", "stop_on_signals"]

log = structlog.get_logger()

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT


class Stoppable(Protocol):
    """What signals need of the App."""

    def request_stop(self, reason: str) -> None:
        """Ask for an orderly end."""


def run_server(settings: Settings, started: Callable[[str], None] = lambda _url: None) -> int:
    """Runs until a signal or the disk ends it; `started` is called with the URL, after that was printed."""
    os.umask(0o077)
    _occupy_standard_descriptors()
    if sys.stderr is not None:
        faulthandler.enable()
    configure_logging(settings.log_level, settings.log_format, for_good=True)
    if settings.unsafe_no_sync:
        log.warning("unsafe-no-sync", meaning="Acknowledged writes are lost in a power cut. For benchmarks only.")
    for name in unknown_variables(os.environ, settings.upstreams):
        log.warning("unknown-variable", name=name, meaning="No setting has this name; it does nothing.")
    _raise_descriptor_limit(settings.connections_max + FILES_RESERVED)
    with asyncio.Runner(loop_factory=_loop_factory(settings.loop)) as runner:
        return runner.run(_run(settings, started))


async def _run(settings: Settings, started: Callable[[str], None]) -> int:
    from tellback_server.app import App  # Here, so that the other commands start without the whole server.

    app = App(settings)
    await app.start()
    stop_on_signals(app)
    # Whoever started us may have closed stdout (then it is None, or a broken pipe); the server does not need it.
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.write("".join(f"{url}\n" for url in app.urls))
        sys.stdout.flush()
    started(app.urls[0])
    # What lives now lives as long as the process: no collection needs to walk it again.
    gc.collect()
    gc.freeze()
    return await app.run_until_stopped()


def _raise_descriptor_limit(wanted: int) -> None:
    """Descriptors for all connections, as far as the hard limit goes: the usual soft one (1024) is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _occupy_standard_descriptors() -> None:
    """Where we were started without stdin, stdout or stderr, puts a socket that leads nowhere in their place.

    Else the log's file could become descriptor 2, and what some library writes to stderr would stand in it.
    """
    while True:
        nowhere = socket.socket()
        if nowhere.fileno() > 2:
            nowhere.close()
            return
        nowhere.detach()


def stop_on_signals(app: Stoppable) -> None:
    """The first signal asks, the second ends. Before the start is done the system's own handlers are right: a start can
    be killed at any point."""
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(EXIT_INTERRUPTED)
        app.request_stop(signal.Signals(number).name)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        try:
            import uvloop
        except ImportError:
            log.info("uvloop-missing", meaning="The event loop of the standard library is used; it is slower.")
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop
