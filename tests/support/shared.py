"""The folder of shared data beside the checkout, and files inside it.

A missing folder is a failure, not a reason to skip: a green run has seen the real data.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]


def shared_folder() -> Path:
    """`../shared`, or what TELLBACK_SHARED names. Raises: AssertionError when it is missing."""
    folder = Path(os.environ.get("TELLBACK_SHARED", CHECKOUT.parent / "shared"))
    assert folder.is_dir(), (
        f"{folder} is missing: put the shared folder beside the checkout, or name it in TELLBACK_SHARED."
    )
    return folder


def shared_json(path: str) -> Any:
    """A JSON file of the shared folder."""
    return json.loads((shared_folder() / path).read_text(encoding="utf-8"))
