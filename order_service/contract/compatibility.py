"""Which change of a schema breaks those who rely on it: an input that takes less, an output that promises less."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
#: A larger value takes less of these, and a smaller of those.
_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def breaking_changes(old: Schema, new: Schema, *, incoming: bool) -> list[str]:
    """What breaks a sibling that was written against `old`; nothing between two versions, which have other names."""
    if old["$id"] != new["$id"]:
        return []
    lost = [f"{path}: the field is gone" for path in sorted(_paths(old) - _paths(new))]
    # What siblings write must still be taken; what we write must still be what they were told to expect.
    taken = _narrowed(old, new, "data") if incoming else _narrowed(new, old, "data")
    return list(dict.fromkeys([*lost, *taken]))


def _paths(schema: Schema, path: str = "data") -> set[str]:
    found = set()
    for shape in _shapes(schema):
        for name, inner in shape.get("properties", {}).items():
            found |= {f"{path}.{name}"} | _paths(inner, f"{path}.{name}")
        found |= _paths(shape["items"], f"{path}[]") if "items" in shape else set()
    return found


def _shapes(schema: Schema) -> list[Schema]:
    """The alternatives of a schema, each of one type."""
    if "anyOf" in schema:
        return [shape for each in schema["anyOf"] for shape in _shapes(each)]
    types = schema.get("type", "anything")
    return [schema | {"type": each} for each in (types if isinstance(types, list) else [types])]


def _narrowed(wide: Schema, narrow: Schema, path: str) -> Iterator[str]:
    """Where `narrow` does not take what `wide` allows."""
    for shape in _shapes(wide):
        like = (shape["type"], "number") if shape["type"] == "integer" else (shape["type"],)
        others = [other for other in _shapes(narrow) if other["type"] in like]
        if not others:
            yield f"{path}: {shape['type']} was not agreed"
        else:
            yield from min((list(_differences(shape, other, path)) for other in others), key=len)


def _differences(wide: Schema, narrow: Schema, path: str) -> Iterator[str]:
    for sign, bounds in ((1, _LOWER_BOUNDS), (-1, _UPPER_BOUNDS)):
        for bound in bounds:
            if bound in narrow and (bound not in wide or sign * narrow[bound] > sign * wide[bound]):
                yield f"{path}: {bound} {wide.get(bound, 'none')} and {narrow[bound]} differ"
    for name in ("pattern", "format", "const"):
        if name in narrow and narrow[name] != wide.get(name):
            yield f"{path}: {name} {wide.get(name, 'none')} and {narrow[name]} differ"
    if "enum" in narrow and not set(wide.get("enum", [None])) <= set(narrow["enum"]):
        yield f"{path}: one of {wide.get('enum', 'any')} and of {narrow['enum']} differ"
    for name in sorted(set(narrow.get("required", [])) - set(wide.get("required", []))):
        yield f"{path}.{name}: is required on one side only"
    for name, inner in wide.get("properties", {}).items():
        if name in narrow.get("properties", {}):
            yield from _narrowed(inner, narrow["properties"][name], f"{path}.{name}")
    if "items" in wide and "items" in narrow:
        yield from _narrowed(wide["items"], narrow["items"], f"{path}[]")
