"""Templates over the columns of rows: Python format strings, whose fields may lead into a column.

`{reward_model.ground_truth}`, `{turns[0][content]}` and `{turns[-1].content}` are fields; a column whose name is the whole of
it comes first. A question's template may be one column that holds a list of messages.
"""

import difflib
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rollout.data.rows import Row, reject
from rollout.types import Messages

ROLES = ("system", "user", "assistant")
_FIELD = re.compile(r"[^.\[\]]+(\[[^\[\]]+\]|\.[^.\[\]]+)*")
_PARTS = re.compile(r"\[([^\[\]]+)\]|\.?([^.\[\]]+)")


def fill(rows: Sequence[Row], template: str, role: str, hint: str = "") -> list[str]:
    """`template` over the columns of every row. `role` (question, answer, response) names it in errors, `hint` ends them.

    Raises ValueError for a template that is malformed, a column that is missing, a value that is not text or a finite
    number, and a result that is blank.
    """
    return _whole(rows, fill_each(rows, template, role), f"the {role} template {template!r} does not fit{hint}")


def fill_each(rows: Sequence[Row], template: str, role: str) -> list[str | ValueError]:
    """As `fill`, with what is wrong with a row in its place; a column that only some rows have is wrong with the others.

    Raises ValueError for a template that is malformed, and a column that no row has.
    """
    fields = _fields(template, role)
    _check_columns(rows, fields, f"the {role} template {template!r}")
    return _each(rows, lambda columns: _format(template, fields, columns))


def fill_questions(rows: Sequence[Row], template: str) -> list[str | Messages]:
    """As `fill`, for questions: where the template is one field and a row has a list of messages there, they are the question.

    A list of one user message is its text.
    """
    fields, bare = _fields(template, "question"), _bare(template)
    _check_columns(rows, fields, f"the question template {template!r}")

    def ask(columns: Mapping[str, Any]) -> str | Messages:
        value = look_up(bare, columns) if bare else None
        return _messages(value) if isinstance(value, list) else _format(template, fields, columns)

    return _whole(rows, _each(rows, ask), f"the question template {template!r} does not fit")


def text_of(question: str | Messages) -> str:
    """A question as a person reads it: of messages, what user and assistant say."""
    if isinstance(question, str):
        return question
    return "\n".join(message["content"] for message in question if message["role"] != "system")


def column(rows: Sequence[Row], name: str, role: str) -> list[Any]:
    """The values of a column, or of a field in one such as `a[b]`, as they are. Raises ValueError where it is missing."""
    _check_columns(rows, [name], f"the {role} template '{{{name}}}'")
    return _whole(rows, _each(rows, lambda columns: look_up(name, columns)), f"the {role} column {name!r} cannot be read")


def look_up(field: str, columns: Mapping[str, Any]) -> Any:
    """What stands in a field. Raises ValueError, saying where the way ends."""
    head = _head(field, columns)
    value = columns[head] if head in columns else _lost(field, head, columns)
    for key, name in _PARTS.findall(field[len(head) :]):
        part = key or name
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            _lost(field, part, value)
    return value


def _head(field: str, columns: Mapping[str, Any]) -> str:
    """The column that a field begins with: its longest beginning that is the name of one."""
    heads = [field, *(field[: match.start()] for match in reversed([*re.finditer(r"[.\[]", field)]))]
    return next((head for head in heads if head in columns), heads[-1])


def _lost(field: str, part: str, value: object) -> None:
    there = f"; it has {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    there = f"; it has {len(value)} items" if isinstance(value, list) else there
    found = "is null" if value is None else f"has no {part!r}"
    raise ValueError(f"{field!r} leads nowhere: {value!r:.60} {found}{there}")


class _Formatter(string.Formatter):
    """What the fields of a format string become."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return look_up(field_name, kwargs), field_name


def _fields(template: str, role: str) -> list[str]:
    """The fields of a format string. Raises ValueError for a malformed one, and where there is none."""
    try:
        parts = [(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{role}: {template!r} is not a format string: {error}") from error
    if any("{" in (spec or "") for _, spec in parts):
        raise ValueError(f"{role}: {template!r} has a field inside a format; expected plain formats such as {{answer:g}}")
    names = list(dict.fromkeys(name for name, _ in parts))
    if not names or "" in names:
        raise ValueError(f"{role}: {template!r} names no column; expected something like '{{{role}}}'")
    if wrong := [name for name in names if not _FIELD.fullmatch(name)]:
        expected = "expected fields such as {reward_model.ground_truth} or {turns[-1][content]}"
        raise ValueError(f"{role}: {template!r} has {wrong[0]!r}; {expected}")
    return names


def _bare(template: str) -> str:
    """The field that is the whole template, or nothing."""
    (literal, name, spec, conversion), *more = string.Formatter().parse(template)
    return "" if literal or spec or conversion or more or name is None else name


def _check_columns(rows: Sequence[Row], fields: Sequence[str], what: str) -> None:
    """Raises ValueError where a field begins with a column that no row has; names the nearest one."""
    for field in fields:
        lacking = [row for row in rows if _head(field, row.columns) not in row.columns]
        if rows and len(lacking) == len(rows):
            columns, name = rows[0].columns, _head(field, rows[0].columns)
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            present = ", ".join(sorted(columns))
            raise ValueError(f"{rows[0].where}: {what} needs column {name!r}; present: {present}{hint} ({len(rows)} in all)")


def _each(rows: Sequence[Row], make: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """What `make` makes of each row's columns, or the ValueError that it raises."""
    made: list[Any] = []
    for row in rows:
        try:
            made.append(make(row.columns))
        except ValueError as error:
            made.append(error)
    return made


def _whole(rows: Sequence[Row], made: list[Any], what: str) -> list[Any]:
    reject([(row.where, str(x)) for row, x in zip(rows, made, strict=True) if isinstance(x, ValueError)], what)
    return made


def _format(template: str, fields: Sequence[str], columns: Mapping[str, Any]) -> str:
    for name in fields:
        value = look_up(name, columns)
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
            inside = f", such as {{{name}{_first_text(value)}}}" if _first_text(value) else ""
            raise ValueError(f"{name!r} is {value!r:.60}; expected text or a number{inside}")
        if isinstance(value, (float, Decimal)) and not math.isfinite(value):
            raise ValueError(f"{name!r} is {value}; expected a finite number")
    text = _Formatter().vformat(template, (), columns)
    if not text.strip():
        raise ValueError("the result is blank")
    return text


def _first_text(value: object) -> str:
    """The field of a text inside a list or a mapping: of a list of messages, what the last one says."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        return "[-1][content]"
    if isinstance(value, list) and value:
        return "[0]" if isinstance(value[0], str) else ""
    return next((f"[{key}]" for key, x in value.items() if isinstance(x, str)), "") if isinstance(value, Mapping) else ""


def _messages(value: list[Any]) -> str | Messages:
    """A prompt given as messages: an optional system message, then user and assistant in turn, the user last."""
    expected = "expected a list of messages, {role: system, user or assistant, content: text}"
    for message in value:
        extra = (
            {key for key, x in message.items() if x is not None} - {"role", "content"} if isinstance(message, dict) else True
        )
        if extra or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(f"found {message!r:.80}; {expected}")
        if not message["content"].strip():
            raise ValueError(f"the {message['role']} message is blank")
    roles = [message["role"] for message in value]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or turns[-1] != "user":
        raise ValueError(
            f"the messages are of {', '.join(roles) or 'nobody'}; expected user and assistant in turn, the user last"
        )
    messages = tuple({"role": message["role"], "content": message["content"]} for message in value)
    return messages[0]["content"] if len(messages) == 1 else messages
