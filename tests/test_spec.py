"""The printed specification: current, valid AsyncAPI, and equal to the real messages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.fixtures.spec import check
from tests.sdk.drivers import JAVASCRIPT, missing

ROOT = Path(__file__).parents[1]


def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "spec" / "asyncapi.yaml").read_text(encoding="utf-8"))
    return found


def test_the_document_is_what_the_code_says() -> None:
    subprocess.run([ROOT / "script" / "spec", "--check"], cwd=ROOT, check=True, timeout=120)


@pytest.mark.skipif(missing("node") is not None, reason=str(missing("node")))
def test_the_document_has_the_form_of_asyncapi_3() -> None:
    schema = json.loads((JAVASCRIPT / "node_modules/@asyncapi/specs/schemas/3.0.0.json").read_text(encoding="utf-8"))
    jsonschema_rs.validator_for(schema).validate(document())


def test_every_reference_leads_somewhere() -> None:
    whole = document()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return (
                [value["$ref"]] if "$ref" in value else [one for inner in value.values() for one in references(inner)]
            )
        return [one for inner in value for one in references(inner)] if isinstance(value, list) else []

    for reference in references(whole):
        found = whole
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def vectors(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((ROOT / f"spec/vectors/{name}.json").read_text(encoding="utf-8"))["cases"]
    return cases


def test_the_messages_of_the_vectors_are_those_of_the_document() -> None:
    """Every server message of the vectors is valid, and every message that the server refuses is not."""
    for case in vectors("following"):
        for step in case["steps"]:
            if "receive" in step and step.get("error") != "NotUnderstood" and step["receive"]["type"] != "weather":
                check(step["receive"])
    schemas = document()
    for case in vectors("messages"):
        if "message" in case and case["message"].get("type") in schemas["components"]["messages"]:
            kind = schemas["components"]["messages"][case["message"]["type"]]["payload"]["$ref"]
            valid = jsonschema_rs.is_valid(
                {"$ref": kind.replace("/components", ""), "schemas": schemas_of(schemas)},
                case["message"],
                validate_formats=True,
            )
            # The schema cannot say that one of two fields is required.
            assert valid is ("code" not in case) or case["name"] == "an acknowledgement of nothing", case["name"]


def schemas_of(whole: dict[str, Any]) -> Any:
    return json.loads(json.dumps(whole["components"]["schemas"]).replace("#/components/schemas/", "#/schemas/"))


def test_what_is_no_message_of_the_document_is_found_out() -> None:
    good = {"type": "pong", "timestamp": "2026-11-24T10:00:00.000Z"}
    check(good)
    for bad in ({**good, "more": 1}, {"type": "pong"}, {**good, "type": "weather"}):
        with pytest.raises(AssertionError):
            check(bad)
