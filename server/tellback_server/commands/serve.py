"""`tellback serve`: the server. The first line on stdout is its URL; everything else goes to stderr."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tellback_server.commands.exits import explained
from tellback_server.config import Settings, flag_of, load_settings, shown_default
from tellback_server.process import run_server

Text = str | None
Texts = list[str] | None


def flag(name: str) -> Any:
    """The option of a setting, with what config.py says about it."""
    field = Settings.model_fields[name]
    option = flag_of(name)
    names = f"{option}/--no-{option.removeprefix('--')}" if field.annotation is bool else option
    shown = f"{field.description} [{shown_default(field)}]".replace("`", "")
    return typer.Option(names, help=shown, show_default=False, metavar=None if field.annotation is bool else "VALUE")


def serve(
    data: Annotated[Text, flag("data")] = None,
    create: Annotated[bool | None, flag("create")] = None,
    store: Annotated[Text, flag("store")] = None,
    primary: Annotated[Text, flag("primary")] = None,
    backup: Annotated[Text, flag("backup")] = None,
    flush_interval_s: Annotated[Text, flag("flush_interval_s")] = None,
    flush_timeout_s: Annotated[Text, flag("flush_timeout_s")] = None,
    store_behind_bytes_max: Annotated[Text, flag("store_behind_bytes_max")] = None,
    host: Annotated[Text, flag("host")] = None,
    port: Annotated[Text, flag("port")] = None,
    config: Annotated[Text, flag("config")] = None,
    auth_file: Annotated[Text, flag("auth_file")] = None,
    jwt_key_file: Annotated[Text, flag("jwt_key_file")] = None,
    jwt_algorithms: Annotated[Text, flag("jwt_algorithms")] = None,
    jwt_audience: Annotated[Text, flag("jwt_audience")] = None,
    allowed_origins: Annotated[Text, flag("allowed_origins")] = None,
    checkpoint_interval_s: Annotated[Text, flag("checkpoint_interval_s")] = None,
    checkpoint_debounce_s: Annotated[Text, flag("checkpoint_debounce_s")] = None,
    checkpoint_batch: Annotated[Text, flag("checkpoint_batch")] = None,
    checkpoint_events: Annotated[Text, flag("checkpoint_events")] = None,
    checkpoint_sweep_s: Annotated[Text, flag("checkpoint_sweep_s")] = None,
    idle_s: Annotated[Text, flag("idle_s")] = None,
    backup_interval_s: Annotated[Text, flag("backup_interval_s")] = None,
    backup_deletions_min: Annotated[Text, flag("backup_deletions_min")] = None,
    backup_keep_all_s: Annotated[Text, flag("backup_keep_all_s")] = None,
    backup_keep_hourly_s: Annotated[Text, flag("backup_keep_hourly_s")] = None,
    backup_keep_daily_s: Annotated[Text, flag("backup_keep_daily_s")] = None,
    backup_bytes_max: Annotated[Text, flag("backup_bytes_max")] = None,
    heartbeat_ms: Annotated[Text, flag("heartbeat_ms")] = None,
    connections_max: Annotated[Text, flag("connections_max")] = None,
    connections_per_address_max: Annotated[Text, flag("connections_per_address_max")] = None,
    frame_bytes_max: Annotated[Text, flag("frame_bytes_max")] = None,
    document_bytes_max: Annotated[Text, flag("document_bytes_max")] = None,
    in_flight_max: Annotated[Text, flag("in_flight_max")] = None,
    open_chats_max: Annotated[Text, flag("open_chats_max")] = None,
    outbox_bytes_max: Annotated[Text, flag("outbox_bytes_max")] = None,
    generation_lease_s: Annotated[Text, flag("generation_lease_s")] = None,
    generation_silence_s: Annotated[Text, flag("generation_silence_s")] = None,
    generations_max: Annotated[Text, flag("generations_max")] = None,
    generation_bytes_max: Annotated[Text, flag("generation_bytes_max")] = None,
    log_segment_bytes: Annotated[Text, flag("log_segment_bytes")] = None,
    log_retain_bytes: Annotated[Text, flag("log_retain_bytes")] = None,
    log_retain_days: Annotated[Text, flag("log_retain_days")] = None,
    upstream: Annotated[Texts, flag("upstream")] = None,
    upstream_key_file: Annotated[Texts, flag("upstream_key_file")] = None,
    upstream_connect_timeout_s: Annotated[Text, flag("upstream_connect_timeout_s")] = None,
    upstream_first_token_timeout_s: Annotated[Text, flag("upstream_first_token_timeout_s")] = None,
    upstream_token_timeout_s: Annotated[Text, flag("upstream_token_timeout_s")] = None,
    upstream_retries_max: Annotated[Text, flag("upstream_retries_max")] = None,
    loop: Annotated[Text, flag("loop")] = None,
    fast_path: Annotated[bool | None, flag("fast_path")] = None,
    log_level: Annotated[Text, flag("log_level")] = None,
    log_format: Annotated[Text, flag("log_format")] = None,
) -> None:
    """Run the server on a folder of chats."""
    flags = dict(locals())  # The parameters are named like the settings; a test holds them against each other.
    with explained():
        raise typer.Exit(run_server(load_settings(flags)))
