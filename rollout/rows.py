"""Rows of a file, or of a built-in task: checked and rendered through column templates, with errors that name file and line.

All bad rows of a kind are counted and the first five are shown. A hub data set is fetched by `datasets`, on first use.
"""

import difflib
import json
import math
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout import calculator, tasks
from rollout.config import SourceConfig, TaskSourceConfig

SHOWN = 5
TASKS = {
    "chained-arithmetic": (tasks.items, tasks.demonstration, tasks.questions),
    "calculator": (calculator.calculations, calculator.program_demonstration, calculator.questions),
}
TASK_OPERATIONS = 3
TASK_TRAINING_ROWS = 4096
TASK_EVALUATION_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. Example: Row(where="train.jsonl:18", columns={"question": "3 + 4?", "answer": 7})."""

    where: str
    """`file:line`, or `name:row` counted from 1 where there are no lines."""
    columns: dict[str, Any]


def source_rows(source: SourceConfig, seed: int, purpose: str, name: str = "") -> list[Row]:
    """The rows of a source: read, or made by a built-in task for this purpose (held-out items for `evaluation`).

    A task that has fewer different questions than its default number gives them all. Raises ValueError where it has fewer than
    were asked for, by the setting `name` (by default the source's `rows`), and as `load_rows` does.
    """
    if not isinstance(source, TaskSourceConfig) or source.task is None:
        return load_rows(source)
    held_out, operations = purpose == "evaluation", source.operations or TASK_OPERATIONS
    items, demonstration, questions = TASKS[source.task]
    default, lengths = TASK_EVALUATION_ROWS if held_out else TASK_TRAINING_ROWS, (operations, operations)
    count = source.rows or min(default, questions(lengths).most(default, held_out))
    try:
        made = items(f"{seed}/{purpose}", count, held_out, lengths)
    except ValueError as error:
        raise ValueError(f"{name or f'data.{purpose}.rows'}: {source.task}, operations: {operations}: {error}") from error
    rng, imperfect = random.Random(f"{seed}/mistakes"), getattr(source, "imperfect", 0.0)
    return [
        Row(
            where=f"{source.task}/{purpose}:{number}",
            columns={"question": item.question, "answer": item.answer, "response": demonstration(item, imperfect, rng)},
        )
        for number, item in enumerate(made, start=1)
    ]


def load_rows(source: SourceConfig) -> list[Row]:
    """The rows of a file or of the hub, the first `source.rows` of them. Raises ValueError for one that cannot be read."""
    name = str(source.file or source.hub)
    rows = _file_rows(source.file) if source.file is not None else _hub_rows(name)
    if not rows:
        raise ValueError(f"{name}: no rows; expected at least one")
    if source.rows is not None and len(rows) < source.rows:
        raise ValueError(f"{name}: rows: {source.rows} asked for, and there are {len(rows)}")
    return rows[: source.rows]


def fill(rows: Sequence[Row], template: str, role: str) -> list[str]:
    """`template` over the columns of every row. `role` (question, answer, response) names it in errors.

    Raises ValueError for a template that is malformed, a column that is missing, a value that is not text or a finite
    number, and a result that is blank.
    """
    fields = _fields(template, role)
    missing = [(row, name) for row in rows for name in dict.fromkeys(fields.values()) if name not in row.columns]
    if missing:
        raise ValueError(_missing_column(missing, template, role))
    texts, problems = [], []
    for row in rows:
        try:
            text = _format(template, list(fields), row)
        except ValueError as error:
            problems.append((row.where, str(error)))
        else:
            texts.append(text)
    reject(problems, f"the {role} template {template!r} does not fit")
    return texts


def as_json(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns in what JSON can carry; what it has no form for (a date, a decimal number) as text."""
    return json.loads(json.dumps(columns, default=str))


def column(rows: Sequence[Row], name: str, role: str) -> list[Any]:
    """The values of a column, or of a place in one such as `a[b]`, as they are. Raises ValueError where it is missing."""
    first = name.partition("[")[0]
    missing = [(row, first) for row in rows if name not in row.columns and first not in row.columns]
    if missing:
        raise ValueError(_missing_column(missing, f"{{{name}}}", role))
    values, problems = [], []
    for row in rows:
        try:
            found = row.columns[name] if name in row.columns else string.Formatter().get_field(name, (), row.columns)[0]
            values.append(found)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problems.append((row.where, f"{name!r} leads nowhere: {error!r}"))
    reject(problems, f"the {role} column {name!r} cannot be read")
    return values


def reject(problems: Sequence[tuple[str, str]], what: str) -> None:
    """Raise a ValueError that says `what` of the (where, reason) pairs, if there are any."""
    if problems:
        lines = [f"  {where}: {reason}" for where, reason in problems[:SHOWN]]
        rest = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n".join([f"{len(problems)} {'row' if len(problems) == 1 else 'rows'}: {what}", *lines, *rest]))


def _file_rows(path: Path) -> list[Row]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [x.name for x in path.parent.iterdir()]) if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise ValueError(f"{path}: the ending is {path.suffix!r}; expected .jsonl or .parquet")


def _jsonl_rows(path: Path) -> list[Row]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, start = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        place = f"{path}:{line}:{error.start - start + 1}"
        raise ValueError(f"{place}: byte {data[error.start]:#04x} is not UTF-8; expected a UTF-8 file") from error
    rows, lines = [], text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            cut = "; the last line has no end, so the file may be cut short" if number == len(lines) else ""
            raise ValueError(f"{path}:{number}:{error.colno}: not JSON: {error.msg}{cut}") from error
        if "\\ud" in line.lower() and not _encodable(columns):
            raise ValueError(f"{path}:{number}:1: has half of a surrogate pair, such as \\ud800, which is no character")
        if not isinstance(columns, dict):
            raise ValueError(f"{path}:{number}:1: found {type(columns).__name__}; expected a JSON object with named columns")
        rows.append(Row(where=f"{path}:{number}", columns=columns))
    return rows


def _encodable(columns: object) -> bool:
    try:
        json.dumps(columns, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error
    return [Row(where=f"{path}:{number}", columns=columns) for number, columns in enumerate(table.to_pylist(), start=1)]


def _hub_rows(hub: str) -> list[Row]:
    import datasets

    name, _, split = hub.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(f"hub: {hub}: cannot be loaded: {error}") from error
    return [Row(where=f"{hub}:{number}", columns=columns) for number, columns in enumerate(loaded, start=1)]


def _fields(template: str, role: str) -> dict[str, str]:
    """The fields of a format string, each with the column it begins with."""
    try:
        parts = [(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{role}: {template!r} is not a format string: {error}") from error
    if any("{" in spec for _, spec in parts):
        raise ValueError(f"{role}: {template!r} has a field inside a format; expected plain formats such as {{answer:g}}")
    names = [name for name, _ in parts]
    fields = {name: re.split(r"[.\[]", name)[0] for name in names}
    if not fields or not all(fields.values()):
        raise ValueError(f"{role}: {template!r} names no column; expected something like '{{{role}}}'")
    return fields


def _missing_column(missing: Sequence[tuple[Row, str]], template: str, role: str) -> str:
    row, name = missing[0]
    near = difflib.get_close_matches(name, row.columns, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    present = ", ".join(sorted(row.columns))
    count = len({row.where for row, _ in missing})
    return f"{row.where}: the {role} template {template!r} needs column {name!r}; present: {present}{hint} ({count} in all)"


def _format(template: str, fields: Sequence[str], row: Row) -> str:
    formatter = string.Formatter()
    for name in fields:
        try:
            value, _ = formatter.get_field(name, (), row.columns)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(f"{name!r} leads nowhere: {error!r}") from error
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{name!r} is {value!r:.60}; expected text or a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name!r} is {value}; expected a finite number")
    text = template.format_map(row.columns)
    if not text.strip():
        raise ValueError("the result is blank")
    return text
