"""Settings: everything a person can set, from flags, TELLBACK_* variables and one TOML file, in this order.

Rules this module keeps:

- A setting has one name. The flag is the name with dashes and without the unit of seconds, the variable is TELLBACK_
  and the name in capitals, the key of the file is the name.
- A bad value stops the start with a sentence that says what is wrong, where it stands and what to do. Nothing is
  guessed, rounded or ignored.
- Without users (neither a token file nor a JWT key) the server binds to loopback only.
- `unsafe_no_sync` has no flag and no key: it breaks the promise of the server, and a line that was copied from
  somewhere must not switch it on.
- `docs/CONFIGURATION.md` holds `settings_table()`; a test compares them.

Errors: ConfigurationError, see `config_problems`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tellback_server.config_problems import (
    ENVIRONMENT_PREFIX,
    ConfigurationError,
    Problem,
    flag_of,
    problem_of,
    variable_of,
)
from tellback_server.config_sources import ENVIRONMENT_ONLY, CipherSource, FileSource
from tellback_server.fs import Fs, FsError
from tellback_server.http import is_loopback_name, parse_origin
from tellback_server.save_strategy import EVENTS, Strategy
from tellback_server.thinning import Policy
from tellback_server.upstream_address import Upstream, key_variable, parse_upstream, upstream_name

__all__ = [
    "ENVIRONMENT_PREFIX",
    "ConfigurationError",
    "Problem",
    "Settings",
    "flag_of",
    "load_settings",
    "settings_table",
    "shown_default",
    "unknown_variables",
    "upstream_keys",
    "variable_of",
]

OTHER_VARIABLES: Final = frozenset({"TELLBACK_URL", "TELLBACK_TOKEN", "TELLBACK_FAILPOINTS"})
"""Of other commands and of the crash tests."""
_KEY_CHARACTERS_MAX: Final = 4096
_KIB: Final = 1 << 10
_MIB: Final = 1 << 20

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
PUBLIC_KEY_ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)


Words = Annotated[tuple[str, ...], NoDecode]
"""A list; in a flag or variable it is written with commas."""


class Settings(BaseSettings):
    """The settings of one server. `load_settings` makes them and turns every fault into a ConfigurationError."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    config: str | None = Field(
        default=None, description="TOML file with settings; paths in it are relative to its folder"
    )
    data: str = Field(
        description="Folder with the users' chats; made when it is missing and the folder around it is there",
        min_length=1,
    )
    create: bool = Field(default=False, description="Make the missing folders around `data`, too")
    store: str = Field(
        default="files", min_length=1,
        description="Where chats are kept: `files` in the users' folders of `data`, the URL of a store, or `multi`",
    )
    primary: str | None = Field(
        default=None, min_length=1, description="With `multi`: `files` or the URL of the store that is read and written"
    )
    backup: str | None = Field(
        default=None, min_length=1, description="With `multi`: the URL of the store that gets everything from the log"
    )
    flush_interval_s: float = Field(
        default=5.0, ge=0.01, le=3600, allow_inf_nan=False, description="How often the backup is brought up to the log"
    )
    flush_timeout_s: float = Field(
        default=10.0, ge=0, le=3600, allow_inf_nan=False,
        description="How long a stop brings the backup up to the log; the next start goes on",
    )
    store_behind_bytes_max: int = Field(
        default=1 << 30, ge=_KIB, le=1 << 40, description="Log that may wait for a store that cannot be reached"
    )
    host: str = Field(
        default="127.0.0.1", description="Address to bind; anything but loopback needs users", min_length=1
    )
    port: int = Field(default=8765, ge=0, le=65535, description="Port to bind; 0 picks a free one")
    checkpoint_interval_s: float = Field(
        default=5.0, ge=0.01, le=3600, description="How long the chat files may trail the log: the autosave interval"
    )
    checkpoint_debounce_s: float = Field(
        default=2.0, ge=0.0, le=3600, description="So long after the last write a chat is folded into its files"
    )
    checkpoint_batch: int = Field(
        default=4096, ge=0, le=1_000_000, description="So many commits are folded without waiting; 0: any number waits"
    )
    checkpoint_events: Words = Field(
        default=("generation", "swipe", "metadata", "close"),
        description=f"What is folded at once; some of {', '.join(EVENTS)}",
    )
    checkpoint_sweep_s: float = Field(
        default=300.0, ge=0.1, le=86_400, description="How often everything that still waits is folded"
    )
    idle_s: float = Field(
        default=30.0, ge=0.01, le=86_400, description="A chat that nobody has open leaves memory after this"
    )
    backup_interval_s: float = Field(
        default=600.0, ge=0, le=7 * 86_400, description="A chat that changed is backed up this often; 0: not by itself"
    )
    backup_deletions_min: int = Field(
        default=10, ge=1, le=1_000_000, description="Before so many messages are deleted at once the chat is backed up"
    )
    backup_keep_all_s: float = Field(default=3600.0, ge=0, description="How long all backups of a chat are kept")
    backup_keep_hourly_s: float = Field(
        default=86_400.0, ge=0, description="How long the last one of each hour is kept"
    )
    backup_keep_daily_s: float = Field(
        default=30 * 86_400.0, ge=0, description="How long the last one of each day is kept; then of each month"
    )
    backup_bytes_max: int = Field(
        default=2 << 30, ge=0, description="All backups of a user; the oldest go first, a chat's last one stays"
    )
    auth_file: str | None = Field(default=None, description="Token file: users and the hashes of their tokens")
    jwt_key_file: str | None = Field(
        default=None, description="Key that checks JSON Web Tokens: a shared secret or a PEM"
    )
    jwt_algorithms: Words = Field(default=("HS256",), description="The only algorithms a JWT may be signed with")
    jwt_audience: str | None = Field(default=None, description="What `aud` of a JWT must name", min_length=1)
    allowed_origins: Words = Field(
        default=(), description="Web origins that may connect, beside the own host and loopback"
    )
    connections_max: int = Field(
        default=8192, ge=1, le=1_000_000, description="Open connections; RLIMIT_NOFILE may lower it"
    )
    connections_per_address_max: int = Field(
        default=4096, ge=1, le=1_000_000, description="Open connections of one address"
    )
    frame_bytes_max: int = Field(
        default=4 * _MIB, ge=_KIB, le=256 * _MIB, description="Largest frame a client may send"
    )
    document_bytes_max: int = Field(
        default=8 * _MIB, ge=_KIB, le=256 * _MIB, description="Largest message, state document or metadata"
    )
    in_flight_max: int = Field(default=64, ge=1, le=256, description="Unanswered writes of one connection")
    open_chats_max: int = Field(default=256, ge=1, le=100_000, description="Chats that one connection may have open")
    outbox_bytes_max: int = Field(
        default=_MIB, ge=64 * _KIB, le=1024 * _MIB, description="What may wait for a slow tab before it is `behind`"
    )
    generation_lease_s: float = Field(
        default=30.0, ge=0.1, le=300, description="How long a generation waits for a producer that is gone"
    )
    generation_silence_s: float = Field(
        default=600.0, ge=1, le=86_400, description="How long the producer of a generation may say nothing"
    )
    generations_max: int = Field(
        default=256, ge=1, le=100_000, description="Generations of one user that run at a time"
    )
    generation_bytes_max: int = Field(
        default=64 * _MIB, ge=_KIB, le=1024 * _MIB, description="Text of one user's running generations"
    )
    heartbeat_ms: int = Field(default=25_000, ge=50, le=600_000, description="How often clients are asked to ping")
    log_segment_bytes: int = Field(default=16 * _MIB, ge=_KIB, le=1 << 30, description="Size of one log segment")
    log_retain_bytes: int = Field(
        default=1 << 30, ge=0, description="Checkpointed log that is kept for history, at most"
    )
    log_retain_days: float = Field(
        default=7.0, ge=0, le=36_500, description="How long checkpointed log is kept, at most"
    )
    loop: Literal["uvloop", "asyncio"] = Field(
        default="uvloop", description="Event loop; asyncio where uvloop is missing"
    )
    fast_path: bool = Field(default=True, description="Read plain text frames without the WebSocket library's detour")
    upstream: Words = Field(
        default=(), description="Model server, as NAME=URL; `generate` streams from it. Once for each server"
    )
    upstream_key_file: Words = Field(
        default=(), description="File with the key of a model server, as NAME=PATH; or set TELLBACK_UPSTREAM_<NAME>_KEY"
    )
    upstream_connect_timeout_s: float = Field(
        default=10.0, ge=0.01, le=600, description="How long connecting to a model server may take"
    )
    upstream_first_token_timeout_s: float = Field(
        default=300.0, ge=0.01, le=86_400, description="How long the first token may take, retries included"
    )
    upstream_token_timeout_s: float = Field(
        default=60.0, ge=0.01, le=86_400, description="How long a model may be silent between two tokens"
    )
    upstream_retries_max: int = Field(
        default=2, ge=0, le=10, description="How often a request is tried again; only before the first token"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line on stderr"
    )
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto: console on a terminal")
    unsafe_no_sync: bool = Field(
        default=False,
        description="For benchmarks: acknowledge before the disk has it. **Loses data in a power cut**",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then what Cipher's variables say, then the file that one of the first two names.
        """
        flags, variables = init_settings(), env_settings()
        file = FileSource(settings_cls, flags.get("config") or variables.get("config"))
        named = {**file(), **variables, **flags}
        return init_settings, env_settings, CipherSource(settings_cls, named), file

    @field_validator("config", "data", "auth_file", "jwt_key_file", mode="after")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "\0" in value:
            raise ValueError("is no path: it holds a NUL character")
        return os.path.abspath(os.path.expanduser(value))

    @field_validator(
        "jwt_algorithms", "allowed_origins", "upstream", "upstream_key_file", "checkpoint_events", mode="before"
    )
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("allowed_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if parse_origin(text) is None:
                raise ValueError(f"{text!r} is no origin; write it as https://chat.example.com or http://10.0.0.5:8000")
        return value

    @field_validator("checkpoint_events", mode="after")
    @classmethod
    def _events(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if text not in EVENTS:
                raise ValueError(f"{text!r} is no event; use some of {', '.join(EVENTS)}")
        return value

    @field_validator("upstream", mode="after")
    @classmethod
    def _upstreams(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names: set[str] = set()
        for text in value:
            name = parse_upstream(text).name
            if name in names:
                raise ValueError(f"two model servers are called {name}")
            names.add(name)
        return value

    @field_validator("upstream_key_file", mode="after")
    @classmethod
    def _upstream_key_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        files: dict[str, str] = {}
        for text in value:
            name, equals, path = text.partition("=")
            if not equals or not path or "\0" in path:
                # Not repeated: it may be the key itself.
                raise ValueError("a key file is written NAME=PATH, for instance local=/etc/tellback/local.key")
            if upstream_name(name) in files:
                raise ValueError(f"{name} has two key files")
            files[name] = os.path.abspath(os.path.expanduser(path))
        return tuple(f"{name}={path}" for name, path in files.items())

    @field_validator("jwt_algorithms", mode="after")
    @classmethod
    def _algorithms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = (*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS)
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is not supported; use some of {', '.join(known)}")
        if not value:
            raise ValueError("names no algorithm")
        if len({name in HMAC_ALGORITHMS for name in value}) > 1:
            # RFC 8725 section 3.1: else a public key would pass as a shared secret.
            raise ValueError("mixes algorithms with a shared secret (HS...) and with a public key; use one kind")
        return value

    @model_validator(mode="after")
    def _users_before_strangers(self) -> Self:
        if self.auth_file is not None and self.jwt_key_file is not None:
            raise ValueError("auth_file and jwt_key_file are both set; choose one way to know users")
        if self.jwt_audience is not None and self.jwt_key_file is None:
            raise ValueError("jwt_audience is set without jwt_key_file; nobody would check it")
        if not self.has_users and not is_loopback_name(self.host):
            raise ValueError(
                f"host {self.host} would let anybody who reaches this machine read and change every chat, because no "
                "users are configured. Make a token with `tellback token new USER --auth-file FILE` and start with "
                "--auth-file FILE, or bind to 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _key_files_have_upstreams(self) -> Self:
        names = {upstream.name for upstream in self.upstreams}
        for name in self.upstream_key_files:
            if name not in names:
                raise ValueError(f"upstream_key_file names {name}, but upstream does not; give --upstream {name}=URL")
        return self

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """The model servers, parsed."""
        return tuple(parse_upstream(text) for text in self.upstream)

    @property
    def upstream_key_files(self) -> dict[str, str]:
        """Paths of key files by the name of their upstream."""
        return {name: path for name, _, path in (text.partition("=") for text in self.upstream_key_file)}

    @model_validator(mode="after")
    def _multi_has_two(self) -> Self:
        if self.store != "multi":
            for name, value in (("primary", self.primary), ("backup", self.backup)):
                if value is not None:
                    raise ValueError(f"{name} is set without store multi; give --store multi, or leave it out")
            return self
        if self.primary is None:
            raise ValueError("store multi has no primary; give --primary files or --primary URL")
        if self.backup is None:
            raise ValueError("store multi has no backup; give --backup URL, for instance sqlite:///srv/backup.db")
        if self.backup in ("files", "multi") or self.primary == "multi":
            raise ValueError("a backup is the URL of a store; a folder of readable copies is files:///srv/mirror")
        if _is_one_store(self.primary, self.backup):
            raise ValueError("primary and backup are one store; a copy beside itself is none")
        return self

    @property
    def primary_and_backup(self) -> tuple[str, str]:
        """The two of `multi`."""
        assert self.primary is not None, "checked"
        assert self.backup is not None, "checked"
        return self.primary, self.backup

    @property
    def save_strategy(self) -> Strategy:
        """When chats are folded into their files."""
        return Strategy(
            debounce_s=self.checkpoint_debounce_s, interval_s=self.checkpoint_interval_s,
            batch_commits=self.checkpoint_batch, sweep_s=self.checkpoint_sweep_s,
            events=frozenset(self.checkpoint_events),
        )

    @property
    def backup_policy(self) -> Policy:
        """Which backups stay."""
        return Policy(
            all_s=self.backup_keep_all_s, hourly_s=self.backup_keep_hourly_s, daily_s=self.backup_keep_daily_s
        )

    @property
    def has_users(self) -> bool:
        """Whether clients must say who they are."""
        return self.auth_file is not None or self.jwt_key_file is not None


def _is_one_store(one: str, other: str) -> bool:
    """Whether two URLs certainly name one store: a file has no options that make another one of it."""
    if one.startswith(("sqlite:", "files:")):
        one, other = (os.path.normpath(url.partition("?")[0]) for url in (one, other))
    return one == other


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from `flags` (by setting name; None means not given), the environment and the file.

    Raises: ConfigurationError.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [problem_of(details, given) for details in error.errors(include_url=False)]
        raise ConfigurationError(*problems) from None


def upstream_keys(settings: Settings, environment: Mapping[str, str], fs: Fs) -> dict[str, str]:
    """The keys of the model servers, by name; those without a key are missing. Raises: ConfigurationError.

    Not a field of the settings, so that no dump of them can show a key.
    """
    keys: dict[str, str] = {}
    for upstream in settings.upstreams:
        variable = key_variable(upstream.name)
        path = settings.upstream_key_files.get(upstream.name)
        if path is None:
            where, key = variable, environment.get(variable, "").strip()
            if not key:
                continue
        elif environment.get(variable, "").strip():
            remedy = f"Unset {variable}, or leave out --upstream-key-file."
            raise ConfigurationError(Problem(variable, f"{upstream.name} has a key file, too.", remedy))
        else:
            try:
                where, key = path, fs.read(path).decode("utf-8", "replace").strip()
            except FsError as error:
                remedy = "Check --upstream-key-file."
                raise ConfigurationError(Problem(path, f"the file {error.reason}.", remedy)) from None
        if not key or len(key) > _KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable() or " " in key:
            what = f"a key is one line of 1 to {_KEY_CHARACTERS_MAX} printable ASCII characters without blanks."
            raise ConfigurationError(Problem(where, what))
        keys[upstream.name] = key
    return keys


def unknown_variables(environment: Mapping[str, str], upstreams: Iterable[Upstream] = ()) -> list[str]:
    """Variables that begin like ours and set nothing: most likely misspelt, so the server warns, and starts."""
    known = {variable_of(name) for name in Settings.model_fields} | OTHER_VARIABLES
    known |= {key_variable(upstream.name) for upstream in upstreams}
    return sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known)


def settings_table() -> str:
    """All settings as a Markdown table, for docs/CONFIGURATION.md."""
    rows = ["| setting (key in the file) | flag | variable | default | meaning |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "only by variable" if name in ENVIRONMENT_ONLY else f"`{flag_of(name)}`"
        rows.append(f"| `{name}` | {flag} | `{variable_of(name)}` | {shown_default(field)} | {field.description} |")
    return "\n".join(rows)


def shown_default(field: FieldInfo) -> str:
    """The default of a setting as people write it."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
