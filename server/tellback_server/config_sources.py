"""Config sources: where settings come from beside flags and TELLBACK_ variables: the TOML file, and Cipher's variables.

Rules of this module:
- Paths in the file are relative to its folder.
- What must not be switched on by a line that was copied from somewhere (ENVIRONMENT_ONLY) has no key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from tellback_server.cipher_settings import cipher_settings
from tellback_server.config_problems import ConfigurationError, Problem, variable_of
from tellback_server.fs import Fs, FsError

__all__ = ["ENVIRONMENT_ONLY", "CipherSource", "FileSource"]

ENVIRONMENT_ONLY: Final = frozenset({"unsafe_no_sync"})
_PATHS: Final = ("data", "auth_file", "jwt_key_file")


class CipherSource(PydanticBaseSettingsSource):
    """What the variables of Cipher's MultiBackend say; nothing where our own settings choose a store."""

    def __init__(self, settings_cls: type[BaseSettings], named: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = cipher_settings(os.environ, named)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


class FileSource(PydanticBaseSettingsSource):
    """The TOML file; nothing when no file is named."""

    def __init__(self, settings_cls: type[BaseSettings], path: str | None) -> None:
        super().__init__(settings_cls)
        self._values = {} if path is None else _read_file(os.path.abspath(os.path.expanduser(path)))

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _read_file(path: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(Fs().read(path).decode())
    except FsError as error:
        remedy = "Check --config or TELLBACK_CONFIG."
        raise ConfigurationError(Problem(path, f"the file {error.reason}.", remedy)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(Problem(path, f"this is not TOML: {error}.")) from None
    for name in ENVIRONMENT_ONLY & values.keys():
        raise ConfigurationError(
            Problem(path, f"{name} cannot be set in a file.", f"Set the variable {variable_of(name)} if you mean it.")
        )
    if "config" in values:
        raise ConfigurationError(Problem(path, "a settings file cannot name another one.", "Remove the key config."))
    folder = os.path.dirname(path)
    for name in _PATHS:
        if isinstance(values.get(name), str):
            values[name] = os.path.join(folder, os.path.expanduser(values[name]))
    if isinstance(values.get("upstream_key_file"), list):
        values["upstream_key_file"] = [_beside(folder, text) for text in values["upstream_key_file"]]
    return values


def _beside(folder: str, text: Any) -> Any:
    """NAME=PATH with the path relative to `folder`; what is something else is left for the check of the setting."""
    name, equals, path = text.partition("=") if isinstance(text, str) else ("", "", "")
    return f"{name}={os.path.join(folder, os.path.expanduser(path))}" if equals and path else text
