"""Find breaking changes between two versions of a schema: inputs that accept less, outputs that guarantee less."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
#: A larger value of a lower bound accepts less, and so does a smaller value of an upper bound.
_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
#: Another value may accept less; only its absence certainly accepts more.
_EXACT = ("pattern", "format", "const", "multipleOf", "uniqueItems")
#: What the comparison understands. Any other keyword may accept less, so that a difference in it is reported.
_KNOWN = {
    *_LOWER_BOUNDS, *_UPPER_BOUNDS, *_EXACT, "enum", "required", "properties", "additionalProperties", "items", "type",
    "anyOf",
}  # fmt: skip
#: They accept and reject nothing.
_ANNOTATIONS = {"$schema", "$id", "title", "description", "default", "examples", "deprecated", "$comment"}


def breaking_changes(old: Schema, new: Schema, *, incoming: bool) -> list[str]:
    """Describe what breaks a sibling built against `old`. Major versions, which differ in `$id`, are not compared."""
    if old["$id"] != new["$id"]:
        return []
    removed = [f"{path}: the field was removed" for path in sorted(_paths(old) - _paths(new))]
    # An incoming event that was valid must stay valid; an outgoing event must stay valid by the old schema.
    narrowed = _narrowed(old, new, "data") if incoming else _narrowed(new, old, "data")
    return list(dict.fromkeys([*removed, *narrowed]))


def _paths(schema: Schema, path: str = "data") -> set[str]:
    found = set()
    for shape in _shapes(schema):
        for name, inner in shape.get("properties", {}).items():
            found |= {f"{path}.{name}"} | _paths(inner, f"{path}.{name}")
        found |= _paths(shape["items"], f"{path}[]") if "items" in shape else set()
    return found


def _shapes(schema: Schema) -> list[Schema]:
    """The alternatives of a schema, each with a single type."""
    if "anyOf" in schema:
        around = {name: value for name, value in schema.items() if name != "anyOf"}
        return [around | shape for each in schema["anyOf"] for shape in _shapes(each)]
    types = schema.get("type", "anything")
    return [schema | {"type": each} for each in (types if isinstance(types, list) else [types])]


def _narrowed(wide: Schema, narrow: Schema, path: str) -> Iterator[str]:
    """Where `narrow` rejects what `wide` accepts."""
    for shape in _shapes(wide):
        accepting = (shape["type"], "number") if shape["type"] == "integer" else (shape["type"],)
        others = [other for other in _shapes(narrow) if other["type"] in (*accepting, "anything")]
        if not others:
            yield f"{path}: type {shape['type']} is on one side only"
        else:
            yield from min((list(_differences(shape, other, path)) for other in others), key=len)


def _differences(wide: Schema, narrow: Schema, path: str) -> Iterator[str]:
    for sign, bounds in ((1, _LOWER_BOUNDS), (-1, _UPPER_BOUNDS)):
        for bound in bounds:
            if bound in narrow and (bound not in wide or sign * narrow[bound] > sign * wide[bound]):
                yield f"{path}: {bound} {wide.get(bound, 'none')} and {narrow[bound]} differ"
    for name in _EXACT:
        if name in narrow and narrow[name] != wide.get(name):
            yield f"{path}: {name} {wide.get(name, 'none')} and {narrow[name]} differ"
    if "enum" in narrow and not set(wide.get("enum", [None])) <= set(narrow["enum"]):
        yield f"{path}: enum {wide.get('enum', 'none')} and {narrow['enum']} differ"
    for name in sorted(set(narrow.get("required", [])) - set(wide.get("required", []))):
        yield f"{path}.{name}: required on one side only"
    for name, inner in wide.get("properties", {}).items():
        if name in narrow.get("properties", {}):
            yield from _narrowed(inner, narrow["properties"][name], f"{path}.{name}")
    if "items" in narrow:
        yield from _narrowed(wide.get("items", {}), narrow["items"], f"{path}[]")
    if narrow.get("additionalProperties", True) not in (True, wide.get("additionalProperties", True)):
        yield f"{path}: additionalProperties is restricted on one side only"
    for name in sorted((wide.keys() | narrow.keys()) - _KNOWN - _ANNOTATIONS):
        if wide.get(name) != narrow.get(name):
            yield f"{path}: {name} differs, which this comparison does not understand"
