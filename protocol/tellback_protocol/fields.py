"""The types of fields that requests share.

Rules of this module:
- Integers in frame fields stay within 2^53; payloads stay the bytes that came in.
- `base` left out and `base` null are different things (BEHAVIOUR B1, B2).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .ids import WIRE_INTEGER_MAX

WireInteger = Annotated[int, msgspec.Meta(ge=0, le=WIRE_INTEGER_MAX)]
OpNumber = Annotated[int, msgspec.Meta(ge=1, le=WIRE_INTEGER_MAX)]
ObjectJson = Annotated[Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
OperationsJson = Annotated[Raw, msgspec.Meta(description="RFC 6902 operations.",
                                             extra_json_schema={"type": "array", "items": {"type": "object"}})]
AnyJson = Annotated[Raw, msgspec.Meta(description="Any JSON value.")]
OnConflict = Literal["refuse", "rebase"]


class OpBase(msgspec.Struct, frozen=True, gc=False):
    """The version that my op number `op` made, so that writes can be pipelined."""

    op: OpNumber


Base = str | OpBase | None | UnsetType


class Numbered(msgspec.Struct, gc=False, kw_only=True):
    """A write: `op` counts those of one session to one owner."""

    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET


class Based(Numbered, gc=False, kw_only=True):
    """A write that says which version it was made for; with `force` any is good."""

    base: Base = UNSET
    force: bool = False


class Rebasable(Based, gc=False, kw_only=True):
    """A write that may be carried out on a newer version than its base, where both fit together."""

    on_conflict: OnConflict = "refuse"
