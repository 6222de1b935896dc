"""Rows of a file, of the hub, or of a built-in task, with errors that name file and line.

All bad rows of a kind are counted and the first five are shown. A hub data set is fetched by `datasets`, on first use.
"""

import difflib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rollout.config import SourceConfig, TaskSourceConfig
from rollout.tasks import arithmetic as tasks
from rollout.tasks import calculator

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


def as_json(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns in what JSON can carry; what it has no form for (a date, a decimal number) as text."""
    return json.loads(json.dumps(columns, default=str))


def reject(problems: Sequence[tuple[str, str]], what: str) -> None:
    """Raise a ValueError that says `what` of each (where, reason), if there are any."""
    if problems:
        lines = [f"  {where}: {reason}" for where, reason in problems[:SHOWN]]
        rest = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n".join([f"{len(problems)} {'row' if len(problems) == 1 else 'rows'}: {what}", *lines, *rest]))


def _file_rows(path: Path) -> list[Row]:
    if path.is_dir():
        raise ValueError(f"{path}: is a directory; expected a .jsonl, .json or .parquet file")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [x.name for x in path.parent.iterdir()]) if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    if path.suffix in (".jsonl", ".json"):
        return _json_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise ValueError(f"{path}: the ending is {path.suffix!r}; expected .jsonl, .json or .parquet")


def _json_rows(path: Path) -> list[Row]:
    """Rows of a file with an object a line, or of one array of objects."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, start = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        where = f"{path}:{line}:{error.start - start + 1}"
        raise ValueError(f"{where}: byte {data[error.start]:#04x} is not UTF-8; expected a UTF-8 file") from error
    rows, escapes = [], "\\ud" in text.lower()
    for number, columns in (_array if text.lstrip().startswith("[") else _lines)(path, text):
        if not isinstance(columns, dict):
            raise ValueError(f"{path}:{number}:1: found {type(columns).__name__}; expected a JSON object with named columns")
        if escapes and not _encodable(columns):
            raise ValueError(f"{path}:{number}:1: has half of a surrogate pair, such as \\ud800, which is no character")
        rows.append(Row(where=f"{path}:{number}", columns=columns))
    return rows


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, what stands in it)."""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise _not_json(path, number, error, last=number == len(lines)) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}:1: {_beyond(error)}") from error


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line that it begins in, item)."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, error.lineno, error, last="\n" not in text[error.pos :]) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_beyond(error)}") from error
    decoder, line, seen = json.JSONDecoder(), 1, 0
    position = _item(text, text.index("[") + 1)
    while text[position] != "]":
        line, seen = line + text.count("\n", seen, position), position
        item, position = decoder.raw_decode(text, position)
        yield line, item
        position = _item(text, position)


_SPACE = re.compile(r"[\s,]*")


def _item(text: str, position: int) -> int:
    """Past blanks and commas."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _not_json(path: Path, number: int, error: json.JSONDecodeError, *, last: bool) -> ValueError:
    cut = "the last line has no end, so the file may be cut short"
    expected = cut if last else "expected an object a line, or one array of objects"
    return ValueError(f"{path}:{number}:{error.colno}: not JSON: {error.msg}; {expected}")


def _beyond(error: Exception) -> str:
    """What Python reads of JSON has limits: digits of a number, lists within lists."""
    return f"cannot be read: {error}".partition("; use sys")[0]


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
    return [
        Row(where=f"{hub}:{number}", columns=columns) for number, columns in enumerate(cast(Iterable[dict], loaded), start=1)
    ]
