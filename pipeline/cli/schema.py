"""The JSON Schema of configuration files, for editors: completion, descriptions, wrong keys underlined."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from pipeline.config import BASE, Config, presets

_BASE = {
    "type": "string",
    "title": "Base",
    "description": "A preset or another file, relative to this one, whose settings hold where this file says nothing.",
    "examples": presets(),
}


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of what ``pipeline.config.load`` reads from a file."""
    made = Config.model_json_schema(by_alias=True)
    made["properties"] = {BASE: _BASE, **made["properties"]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **made, "title": "Configuration of agit"}
