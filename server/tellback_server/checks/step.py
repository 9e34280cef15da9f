"""Step: what a check tells as it goes."""

from __future__ import annotations

import msgspec

from tellback_server.checks.findings import Finding

__all__ = ["Step"]


class Step(msgspec.Struct, frozen=True, gc=False):
    """One file is done."""

    path: str
    size_bytes: int
    findings: list[Finding]
