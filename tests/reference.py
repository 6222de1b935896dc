"""The page of every configuration key, made of the models that read a recipe: `python -m tests.reference` writes it."""

import enum
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.config.settings import RunSettings
from cluster.config.stages import StageConfig
from learner.algorithms.table import AnyCredit, AnyWeighting, RewardModelRow
from rollout.data.selection import Selection

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
INTRO = """\
# Every configuration key

Made from the code by `python -m tests.reference`; a test holds it to the code.

A recipe is a YAML file of these keys, nested by their dots. On a command line each of them is `key=value`, and a stage is meant
by its name or its number: `stages.grpo.steps=40`, `stages.0.steps=40`. An unknown key is refused with its line and the nearest
name, and so is one that the run would not read. `config.yaml` in the run directory has them all, with the values that it took.
"""
CELLS = {
    "selection": (Selection, "Which questions are asked. By default `uniform`."),
    "credit": (AnyCredit, "What of an output's rewards each token gets. A row of `cohort describe` names its own."),
    "weighting": (AnyWeighting, "The coefficient of a token's gradient, made of its credit. A row names its own."),
    "labels": (RewardModelRow.model_fields["labels"].annotation, "Of a reward model's stage: where labels come from."),
    "objective": (RewardModelRow.model_fields["objective"].annotation, "Of a reward model's stage: the loss."),
}
"""Keys of a stage that take a cell, and what they are for."""
WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Path": "path"}
BOUNDS = {Gt: ("gt", "above {}"), Ge: ("ge", "at least {}"), Lt: ("lt", "below {}"), Le: ("le", "at most {}")}


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models(argument)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below a model, by its dots; stages and cells apart."""
    for name, field in model.model_fields.items():
        inner = [one for one in models(field.annotation) if one is not StageConfig]
        if name == "stages" or (model is StageConfig and name in CELLS):
            continue
        if len(inner) == 1:
            if field.default is None:
                yield f"{prefix}{name}", field
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def kind(annotation: object) -> str:
    """A type in words."""
    arguments = [one for one in typing.get_args(annotation) if one is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(one)}`" if not isinstance(one, str) else f"`{one}`" for one in arguments)
    if origin is typing.Annotated:
        return kind(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(one) for one in arguments)
    if origin is tuple:
        many = arguments[-1] is Ellipsis
        return f"list of {kind(arguments[0])}" if many else f"[{', '.join(kind(one) for one in arguments)}]"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping of the keys below"
    return WORDS[getattr(annotation, "__name__", "")]


def bounds(field: FieldInfo) -> str:
    """The limits of a value in words."""
    found = []
    for one in field.metadata:
        for type_, (name, words) in BOUNDS.items():
            if isinstance(one, type_):
                found.append(words.format(f"{getattr(one, name):g}" if abs(getattr(one, name)) < 1e9 else getattr(one, name)))
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    """What stands where a recipe has nothing."""
    if field.default is PydanticUndefined:
        return "needed"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        return "its keys'"
    text = json.dumps(field.default, ensure_ascii=False).strip('"')
    if len(text) > 60:
        return f"{len(field.default)} of them, such as `{json.dumps(field.default[0], ensure_ascii=False)}`"
    return f"`{text}`" if text else "nothing"


def plain(text: str) -> str:
    """Text as a cell of a table: no column ends in it, and outside of code marks no tag begins."""
    parts = re.split("(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def line(key: str, field: FieldInfo) -> str:
    """One row of a table. Raises ValueError for a field that nothing describes."""
    if not field.description:
        raise ValueError(f"{key}: no description; expected a docstring under the field")
    cells = (f"`{key}`", "; ".join(filter(None, (kind(field.annotation), bounds(field)))), default(field), field.description)
    return "| " + " | ".join(plain(" ".join(cell.split())) for cell in cells) + " |"


def table(rows: list[str]) -> str:
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows])


def summary(model: type[BaseModel]) -> str:
    """The first sentence or paragraph of a model's docstring."""
    return " ".join(str(model.__doc__).split("\n\n")[0].split())


def page() -> str:
    """The whole page."""
    out = [INTRO, "## The run\n"]
    own = [(key, field) for key, field in keys(RunSettings) if "." not in key]
    out.append(table([line(key, field) for key, field in own]) + "\n")
    for name, field in RunSettings.model_fields.items():
        inner = [one for one in models(field.annotation) if one is not StageConfig]
        if name == "stages" or len(inner) != 1:
            continue
        out += [f"## {name}\n", f"{summary(inner[0])}\n"]
        out.append(table([line(key, one) for key, one in keys(inner[0], f"{name}.")]) + "\n")
    out += ["## stages\n", "A list. Each stage has these keys; `iterations: N` with `stages: [...]` repeats some of them.\n"]
    out.append(table([line(key, field) for key, field in keys(StageConfig)]) + "\n")
    for name, (annotation, about) in CELLS.items():
        out += [f"## stages: {name}\n", f"{about}\n"]
        for model in models(annotation):
            out += [f"### {name}: {model.model_fields['cell'].default}\n", f"{summary(model)}\n"]
            if rows := [line(key, field) for key, field in keys(model) if key != "cell"]:
                out.append(table(rows) + "\n")
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(PAGE.write_text(page(), encoding="utf-8") and 0)
