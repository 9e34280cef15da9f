"""A file of users and their tokens, as `serve --auth-file` reads it."""

from __future__ import annotations

import json
from pathlib import Path

from tellback_server.auth import token_digest


def token_file(path: Path, **tokens: str) -> Path:
    """A token file with these users."""
    entries = [{"user": user, "sha256": token_digest(token)} for user, token in tokens.items()]
    path.write_text(json.dumps({"tokens": entries}))
    path.chmod(0o600)
    return path
