"""Validation errors in words: what was found, what was expected, and the nearest valid name."""

import difflib
import json
import re
import typing

from pydantic import BaseModel

Loc = tuple[str | int, ...]
"""Where a value stands: ("stages", 0, "steps")."""


def sentence(item: dict, model: type[BaseModel]) -> str:
    """One of pydantic's errors in words: what was found; what was expected."""
    kind, found, message = item["type"], item["input"], item["msg"]
    if kind == "extra_forbidden":
        return _unknown(item["loc"], model)
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "missing":
        return "missing; expected a value"
    expected = f"expected {message[len('Input should be ') :]}" if message.startswith("Input should be ") else message
    if kind == "literal_error" and isinstance(found, str):
        expected += nearest(found, re.findall(r"'([^']*)'", expected))
    if kind == "string_type" and isinstance(found, int | float):
        expected += f": quote it, as in '{show(found)}'"
    return f"found {show(found)}; {expected}"


def _unknown(loc: Loc, model: type[BaseModel]) -> str:
    """An unknown key: the nearest name beside it, or the section where the name belongs."""
    key, sections = str(loc[-1]), [model]
    for part in (part for part in loc[:-1] if isinstance(part, str)):
        tagged = [s for s in sections if len(sections) > 1 and any(f.default == part for f in s.model_fields.values())]
        sections = tagged or _sections(sections[0].model_fields[part].annotation)
    beside = nearest(key, sections[0].model_fields)
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == key.replace("-", "_")]
    if not beside and elsewhere:
        beside = f"; it belongs at {' or '.join(elsewhere)}"
    return f"unknown key{beside or '; expected one of ' + ', '.join(sections[0].model_fields)}"


def _sections(annotation: object) -> list[type[BaseModel]]:
    """The models inside an annotation such as `tuple[StageConfig, ...]` or `SourceConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in typing.get_args(annotation) for found in _sections(arg)]


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    out = []
    for name, field in model.model_fields.items():
        many = "N." if typing.get_origin(field.annotation) in (list, tuple) else ""
        inner = [path for section in _sections(field.annotation) for path in _paths(section, f"{prefix}{name}.{many}")]
        out += inner or [prefix + name]
    return out


def nearest(name: str, choices: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice that looks most like the name, or nothing."""
    plain = {choice.lower().replace("-", "_"): choice for choice in choices}
    match = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return f"; did you mean '{plain[match[0]]}'?" if match else ""


def show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
