"""Config problems: what is wrong with settings, in sentences that say where it stands and what to do.

Errors:

    ConfigurationError      has problems: one sentence for each bad setting
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = ["ENVIRONMENT_PREFIX", "ConfigurationError", "Problem", "flag_of", "problem_of", "variable_of"]

ENVIRONMENT_PREFIX: Final = "TELLBACK_"


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: `where` names the source, `what` the fault, `remedy` what to do."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.remedy}" if self.remedy else "")


class ConfigurationError(Exception):
    """The server cannot start with these settings. Exit code 78."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def flag_of(name: str) -> str:
    """The flag of a setting: `--checkpoint-interval` for `checkpoint_interval_s`."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def problem_of(details: Any, given: Mapping[str, Any]) -> Problem:
    """One complaint of pydantic; `given` are the flags."""
    name = str(details["loc"][0]) if details["loc"] else ""
    kind = details["type"]
    if kind == "extra_forbidden":
        return Problem("the settings file", f"there is no setting {name!r}.", "docs/CONFIGURATION.md lists them all.")
    if kind == "missing":
        return Problem(name, "it is not set.", f"Give {flag_of(name)} or set {variable_of(name)}.")
    text = str(details["ctx"]["error"]) if kind == "value_error" else _sentence(details)
    if not name:
        return Problem("settings", f"{text}.")
    return Problem(_source(name, given), f"{text}.")


def _source(name: str, given: Mapping[str, Any]) -> str:
    if name in given:
        return flag_of(name)
    variables = {variable.upper() for variable, value in os.environ.items() if value}
    return variable_of(name) if variable_of(name) in variables else f"{name} in the settings file"


def _sentence(details: Any) -> str:
    """pydantic's complaint in our words; without the value when the value could be long."""
    value = str(details["input"])[:64]
    context = details.get("ctx", {})
    match details["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{value!r} is not a whole number"
        case "float_parsing" | "float_type":
            return f"{value!r} is not a number"
        case "bool_parsing" | "bool_type":
            return f"{value!r} is neither true nor false"
        case "literal_error":
            return f"{value!r} is not one of {context['expected']}"
        case "greater_than_equal":
            return f"{value} is too small; the least is {context['ge']}"
        case "less_than_equal":
            return f"{value} is too large; the most is {context['le']}"
        case "string_too_short":
            return "the value is empty"
        case "string_type":
            return f"{value!r} is not a text"
        case _:
            return f"{value!r} cannot be used: {details['msg']}"
