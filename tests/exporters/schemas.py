"""Checks a JSON document by the schema that is shipped for its format."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema


def check_schema(name: str, document: bytes) -> Any:
    """The parsed document; the test fails where it is not what the schema says. name: of the file, without its suffix."""
    schema = json.loads(files("exporters").joinpath("schemas", f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    parsed = json.loads(document)
    jsonschema.Draft202012Validator(schema).validate(parsed)
    return parsed
