"""Recipes as text: YAML with line numbers, `key=value` overrides, and validation errors a person can act on.

YAML 1.2's core types: `no` and `2026-11-22` are text, `1e-3` is a number. Anchors are left out (a recipe has 25 lines).
"""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cluster.config.explain import Loc, nearest, sentence, show, takes_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a recipe or a run: `where: key: text`."""

    text: str
    """What was found; what was expected."""
    key: str = ""
    """Dotted: stages.0.steps."""
    where: str = ""
    """`file:line`, or the override."""
    line: int = 0
    """Sorts problems; 0 is not a line of the file."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


class ConfigError(ValueError):
    """Every problem at once, one a line."""

    def __init__(self, problems: Sequence[Problem | str]):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = list(problems)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="anchors are not part of recipes", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|\.?[0-9]+[eE][-+]?[0-9]+|[0-9]+\.[0-9]*[eE][-+]?[0-9]+)", list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


_SCALARS = {"null": lambda text: None, "bool": lambda text: text.lower() == "true", "int": int, "float": float, "str": str}


class Recipe:
    """A parsed recipe that remembers where every value came from: a line of the file or an override."""

    def __init__(self, path: Path, text: str | None = None):
        """`text`: what the file would hold, where there is none."""
        self.path = path
        self.locations: dict[Loc, tuple[int, str]] = {}
        self.problems: list[Problem | str] = []
        self.data: Any = self._build(self._compose(_read(path) if text is None else text, f"{path}"), ())
        if not isinstance(self.data, dict):
            found = f"found {show(self.data)}; expected keys such as name, model, data and stages"
            raise ConfigError([Problem(text=found, where=f"{path}:1")])

    def override(self, setting: str, model: type[BaseModel]) -> None:
        """Apply `a.b.0.c=value`; list items go by number or by stage name. The value is YAML, and text where `model` takes text
        and YAML sees a mapping: `data.questions.question={question}`."""
        name = f"override '{setting}'"
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            return self.problems.append(Problem(text="expected key=value, as in rollout.workers=2", where=name))
        text = takes_text(model, key.split("."))
        try:
            root = self._compose(value, name)
        except ConfigError:
            if not text:
                raise
            root = yaml.ScalarNode("str", value)
        loc: Loc = ()
        node = self.data
        for part in key.split("."):
            parent = node
            step = part if isinstance(parent, dict) else self._index(parent, part)
            if step is None:
                found = f"is {_inside(parent)}; there is no '{part}' in it"
                return self.problems.append(Problem(text=found, key=_dotted(loc), where=name))
            loc += (step,)
            if isinstance(parent, dict) and parent.get(step) is None:
                parent[step] = {}
                self.locations[loc] = (0, name)
            node = parent[step]
        self.locations = {other: line for other, line in self.locations.items() if other[: len(loc)] != loc}
        parent[step] = value if text and isinstance(root, yaml.CollectionNode) else self._build(root, loc, name)
        self.locations[loc] = (0, name)

    def repeat_iterations(self) -> None:
        """Write `{iterations: N, stages: [...]}` among the stages out as those stages N times, named `<name>-1`, `<name>-2` ...

        That is iterative training: whatever a stage takes at its start, such as its reference, it takes anew every time.
        """
        stages, out, origins = self.data.get("stages"), [], []
        if not isinstance(stages, list):
            return
        for i, item in enumerate(stages):
            inner = item.get("stages") if isinstance(item, dict) and "iterations" in item else None
            if inner is None:
                out.append(item)
                origins.append((i,))
                continue
            count = item["iterations"]
            if not isinstance(inner, list) or not isinstance(count, int) or count < 1 or set(item) != {"iterations", "stages"}:
                expected = "expected `iterations: N`, at least 1, with a list of `stages`, and nothing else"
                self.problems.append(self._problem(("stages", i), f"found {show(item)}; {expected}"))
                continue
            for number in range(1, count + 1):
                for j, (stage, name) in enumerate(zip(inner, item_names(inner), strict=True)):
                    out.append({**stage, "name": f"{name}-{number}"} if isinstance(stage, dict) and name else stage)
                    origins.append((i, "stages", j))
        locations = dict(self.locations)
        for new, origin in enumerate(origins):
            for loc, line in locations.items():
                if loc[1 : 1 + len(origin)] == origin and loc[0] == "stages":
                    self.locations["stages", new, *loc[1 + len(origin) :]] = line
        self.data["stages"] = out

    def explain(self, error: ValidationError, model: type[BaseModel]) -> list[Problem]:
        """The problems of a validation error, each with where it is, in the order of the file.

        A validator may raise several at once: (location below its model, text) under `problems` in the error's context.
        """
        found, items = [], error.errors()
        for item in items:
            if any(other["loc"][: len(item["loc"])] == item["loc"] != other["loc"] for other in items):
                continue  # an error inside it says more, and may be its cause
            several = item.get("ctx", {}).get("problems")
            for loc, text in [((), sentence(item, model))] if several is None else several:
                found.append(self._problem((*item["loc"], *loc), text))
        return sorted(found, key=lambda problem: problem.line)

    def _compose(self, text: str, name: str) -> yaml.Node | None:
        try:
            return yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark, what = error.problem_mark or error.context_mark, error.problem or error.context
            at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise ConfigError([Problem(text=f"not valid YAML: {what}", where=name + at)]) from error
        except yaml.YAMLError as error:
            raise ConfigError([Problem(text=f"not valid YAML: {' '.join(str(error).split())}", where=name)]) from error

    def _build(self, node: yaml.Node | None, loc: Loc, name: str | None = None) -> object:
        if node is None:
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self._child(item, item, (*loc, i), name) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            out: dict[str, object] = {}
            for key, value in node.value:
                where = name or f"{self.path}:{key.start_mark.line + 1}"
                if not isinstance(key, yaml.ScalarNode):
                    found = f"found a {key.id} as a key; expected a name"
                    self.problems.append(Problem(text=found, key=_dotted(loc), where=where))
                elif key.value in out:
                    again = _dotted((*loc, key.value))
                    self.problems.append(Problem(text="found the key twice; expected it once", key=again, where=where))
                else:
                    out[key.value] = self._child(key, value, (*loc, key.value), name)
            return out
        kind = node.tag.rpartition(":")[2]
        return _SCALARS[kind](node.value) if kind in _SCALARS else node.value

    def _child(self, marked: yaml.Node, node: yaml.Node, loc: Loc, name: str | None) -> object:
        line = marked.start_mark.line + 1
        self.locations[loc] = (0, name) if name else (line, f"{self.path}:{line}")
        return self._build(node, loc, name)

    def _problem(self, loc: Loc, text: str) -> Problem:
        prefixes = (loc[:n] for n in range(len(loc), 0, -1))
        known = (self.locations[prefix] for prefix in prefixes if prefix in self.locations)
        line, where = next(known, (1, f"{self.path}:1"))
        return Problem(text=text, key=_dotted(loc), where=where, line=line)

    @staticmethod
    def _index(parent: object, part: str) -> int | None:
        names = item_names(parent) if isinstance(parent, list) else []
        if part.isdecimal() and int(part) < len(names):
            return int(part)
        return names.index(part) if names.count(part) == 1 else None


def item_names(items: list) -> list[str | None]:
    """Names of a list's items: `name`, or else `algorithm` (with its number from 1 where several unnamed items share it)."""
    given = [item.get("name") if isinstance(item, dict) else None for item in items]
    kinds = [
        item.get("algorithm") if isinstance(item, dict) and not name else None for item, name in zip(items, given, strict=True)
    ]
    default = [kind if kinds.count(kind) == 1 else f"{kind}-{i}" for i, kind in enumerate(kinds, 1)]
    return [name or (unique if kind else None) for name, kind, unique in zip(given, kinds, default, strict=True)]


def dump(data: dict) -> str:
    """YAML text that a Recipe reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(text=f"byte {error.start} is not UTF-8; expected YAML", where=f"{path}")]) from error
    except OSError as error:
        near = nearest(path.stem, {p.stem for p in path.parent.glob("*.yaml")}) if path.parent.is_dir() else ""
        raise ConfigError([Problem(text=f"{error.strerror}; expected a YAML file{near}", where=f"{path}")]) from error


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def _inside(value: object) -> str:
    if not isinstance(value, list):
        return show(value)
    names = [str(i) if name is None else f"{i} ({name})" for i, name in enumerate(item_names(value))]
    return f"a list of {', '.join(names) or 'nothing'}"
