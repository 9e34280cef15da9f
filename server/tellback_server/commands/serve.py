"""`tellback serve`: the server. The first line on stdout is its URL; everything else goes to stderr."""

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
from typing import Annotated, Any, Protocol

import structlog
import typer

from tellback_server.commands.exits import INTERRUPTED, explained
from tellback_server.config import Settings, flag_of, load_settings, shown_default, unknown_variables
from tellback_server.gateway import FILES_RESERVED
from tellback_server.logging_setup import configure_logging

log = structlog.get_logger()

Text = str | None


class Stoppable(Protocol):
    """What signals need of the App."""

    def request_stop(self, reason: str) -> None:
        """Ask for an orderly end."""


def flag(name: str) -> Any:
    """The option of a setting, with what config.py says about it."""
    field = Settings.model_fields[name]
    option = flag_of(name)
    names = f"{option}/--no-{option.removeprefix('--')}" if field.annotation is bool else option
    shown = f"{field.description} [{shown_default(field)}]".replace("`", "")
    return typer.Option(names, help=shown, show_default=False, metavar=None if field.annotation is bool else "VALUE")


def serve(
    data: Annotated[Text, flag("data")] = None,
    host: Annotated[Text, flag("host")] = None,
    port: Annotated[Text, flag("port")] = None,
    config: Annotated[Text, flag("config")] = None,
    auth_file: Annotated[Text, flag("auth_file")] = None,
    jwt_key_file: Annotated[Text, flag("jwt_key_file")] = None,
    jwt_algorithms: Annotated[Text, flag("jwt_algorithms")] = None,
    jwt_audience: Annotated[Text, flag("jwt_audience")] = None,
    allowed_origins: Annotated[Text, flag("allowed_origins")] = None,
    checkpoint_interval_s: Annotated[Text, flag("checkpoint_interval_s")] = None,
    idle_s: Annotated[Text, flag("idle_s")] = None,
    heartbeat_ms: Annotated[Text, flag("heartbeat_ms")] = None,
    connections_max: Annotated[Text, flag("connections_max")] = None,
    connections_per_address_max: Annotated[Text, flag("connections_per_address_max")] = None,
    frame_bytes_max: Annotated[Text, flag("frame_bytes_max")] = None,
    document_bytes_max: Annotated[Text, flag("document_bytes_max")] = None,
    in_flight_max: Annotated[Text, flag("in_flight_max")] = None,
    open_chats_max: Annotated[Text, flag("open_chats_max")] = None,
    log_segment_bytes: Annotated[Text, flag("log_segment_bytes")] = None,
    log_retain_bytes: Annotated[Text, flag("log_retain_bytes")] = None,
    log_retain_days: Annotated[Text, flag("log_retain_days")] = None,
    loop: Annotated[Text, flag("loop")] = None,
    fast_path: Annotated[bool | None, flag("fast_path")] = None,
    log_level: Annotated[Text, flag("log_level")] = None,
    log_format: Annotated[Text, flag("log_format")] = None,
) -> None:
    """Run the server on a folder of chats."""
    flags = dict(locals())  # The parameters are named like the settings; a test holds them against each other.
    with explained():
        raise typer.Exit(run_server(load_settings(flags)))


def run_server(settings: Settings, started: Callable[[str], None] = lambda _url: None) -> int:
    """Runs until a signal or the disk ends it; `started` is called with the URL, after that was printed."""
    os.umask(0o077)
    _occupy_standard_descriptors()
    if sys.stderr is not None:
        faulthandler.enable()
    configure_logging(settings.log_level, settings.log_format)
    if settings.unsafe_no_sync:
        log.warning("unsafe-no-sync", meaning="Acknowledged writes are lost in a power cut. For benchmarks only.")
    for name in unknown_variables(os.environ):
        log.warning("unknown-variable", name=name, meaning="No setting has this name; it does nothing.")
    _raise_descriptor_limit(settings.connections_max + FILES_RESERVED)
    with asyncio.Runner(loop_factory=_loop_factory(settings.loop)) as runner:
        return runner.run(_run(settings, started))


async def _run(settings: Settings, started: Callable[[str], None]) -> int:
    from tellback_server.app import App  # Here, so that the other commands start without the whole server.

    app = App(settings)
    await app.start()
    _listen_to_signals(app)
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


def _listen_to_signals(app: Stoppable) -> None:
    """The first signal asks, the second ends. Before the start is done the system's own handlers are right: a start can
    be killed at any point."""
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(INTERRUPTED)
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
