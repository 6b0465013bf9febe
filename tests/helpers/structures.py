"""Ten JSON schemas, none of whose values is long."""

from __future__ import annotations

from typing import Any


def thing(**properties: Any) -> dict[str, Any]:
    """An object that has all of these properties and no others."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


WORD = {"type": "string", "minLength": 1, "maxLength": 8}
SCHEMAS: dict[str, dict[str, Any]] = {
    "one word": thing(name=WORD),
    "weather": thing(city=WORD, degrees={"type": "integer", "minimum": -40, "maximum": 50}, sunny={"type": "boolean"}),
    "enumeration": thing(colour={"enum": ["red", "绿", "blue sky", None, 7]}),
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4},
    "nested": thing(person=thing(name=WORD, tags={"type": "array", "items": WORD, "maxItems": 2})),
    "either": {"anyOf": [thing(id={"type": "integer", "minimum": 0, "maximum": 999}), thing(none={"type": "null"})]},
    "pattern": thing(
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, day={"type": "string", "format": "date"}
    ),
    "optional": {**thing(名=WORD, b={"type": "boolean"}), "required": ["名"]},
    "reference": {
        **thing(left={"$ref": "#/$defs/side"}, right={"$ref": "#/$defs/side"}),
        "$defs": {"side": thing(w=WORD)},
    },
    "constant": thing(type={"const": 'a "quoted" \\ 中文 } text'}, ok={"type": "boolean"}),
}
