"""The specification against the code it describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tellback_protocol.errors import ERRORS
from tellback_protocol.frames import ClientFrame, Limits, ServerFrame
from tests.support import schema
from tests.support.shared import CHECKOUT

SPEC = CHECKOUT / "spec"


@pytest.mark.parametrize("path", sorted(schema.files()), ids=lambda path: path.name)
def test_what_is_generated_from_the_frames_is_up_to_date(path: Path) -> None:
    assert path.read_text() == schema.files()[path], "run python -m tests.support.schema"


def examples() -> list[tuple[str, dict[str, Any]]]:
    found = json.loads((SPEC / "vectors/frames/examples.json").read_text())
    return [(vector["direction"], vector["frame"]) for vector in found["vectors"]]


def test_every_example_is_valid_by_the_schema_and_every_frame_has_one() -> None:
    validators = {}
    for side in ("client", "server"):
        content = json.loads((SPEC / f"schema/{side}.json").read_text())
        jsonschema.Draft202012Validator.check_schema(content)
        validators[side] = jsonschema.Draft202012Validator(content)
    seen: dict[str, set[str]] = {"client": set(), "server": set()}
    for side, frame in examples():
        validators[side].validate(frame)
        seen[side].add(frame["type"])
    assert seen["client"] == set(schema.frame_types(ClientFrame))
    assert seen["server"] == set(schema.frame_types(ServerFrame))


def test_the_asyncapi_document_is_whole() -> None:
    document = yaml.safe_load((SPEC / "asyncapi.yaml").read_text())
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    operations = document["operations"]
    assert {operation["action"] for operation in operations.values()} == {"send", "receive"}
    for reference in references(document):
        file, _, pointer = reference.partition("#")
        target: Any = document if not file else json.loads((SPEC / file).read_text())
        for part in pointer.strip("/").split("/"):
            target = target[part]
    sent = [len(operation["messages"]) for operation in operations.values()]
    assert sum(sent) == len(document["components"]["messages"]) == len(document["channels"]["socket"]["messages"])


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


def test_the_protocol_page_names_every_frame_error_and_limit() -> None:
    page = (SPEC / "PROTOCOL.md").read_text()
    names = [*schema.frame_types(ClientFrame), *schema.frame_types(ServerFrame), *ERRORS, *Limits.__struct_fields__]
    missing = [name for name in names if f"`{name}`" not in page and f'"{name}"' not in page]
    assert not missing, f"spec/PROTOCOL.md does not mention {missing}"


def test_every_rule_of_behaviour_is_cited_by_a_test_or_a_vector() -> None:
    rules = set(re.findall(r"^- \*\*([A-Z]+[0-9]+)\*\*", (SPEC / "BEHAVIOUR.md").read_text(), re.MULTILINE))
    assert len(rules) > 60
    tests = "\n".join(path.read_text() for path in (CHECKOUT / "tests").rglob("*.py"))
    vectors = "\n".join(path.read_text() for path in (SPEC / "vectors").rglob("*.json"))
    # In brackets, in a name, or a vector's: other papers number their rows alike, and are named without brackets.
    bracketed = "\n".join(re.findall(r"\[([A-Z][A-Z0-9, /to]*)\]", tests))
    cited = set(re.findall(r"\b[A-Z][0-9]{1,2}\b", bracketed)) | set(re.findall(r'"([A-Z][0-9]{1,2})"', vectors))
    cited |= {part.upper() for name in re.findall(r"def test_(\w+)", tests) for part in name.split("_")}
    assert not rules - cited, f"no test and no vector cites {sorted(rules - cited)}"
