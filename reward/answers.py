"""Where the final answer of an output stands. What it is worth is found in `values`, when two are equal in `comparison`."""

import re
from typing import Literal

from reward.values import LAST_NUMBER, parse, plain_characters

AnswerFormat = Literal["auto", "hash", "boxed", "answer-is", "last-number"]

LONGEST_BARE = 300
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_BOXED = re.compile(r"\\f?boxed\s*(?:(\{)|(?<=\s)([^\s${}\\.,;]+))")
_ANSWER_IS = re.compile(r"(?:answer|答案)[\s*_]*(?:is|are|[:：=是为])[\s*_]*(?:[:：=])?[\s*_]*([^\n]*)", re.IGNORECASE)
_LAST_LINE = re.compile(r"(?:\A|\n)A[:：]\s*([^\n]+?)\s*\Z")
_IS = re.compile(r"\b(?:is|are)\b(?=.*[0-9$\\])", re.DOTALL)
_SENTENCE_END = re.compile(r"[。；;!！]|\.(?![0-9])|\bbecause\b|\bsince\b|, (?=[A-Za-z])")
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def extract(text: str | None, answer_format: AnswerFormat) -> str | None:
    """The final answer as it is written, or None: the last `#### N`, the last `\\boxed{}`, what a last line `A: N` or the last
    "the answer is" says, or the last number.

    `auto` takes the first of these that is found; as `####` heads sections too, it must have a value there, and a "final
    answer" stated behind the last `\\boxed{}` counts instead of that. Without a mark it takes the whole text where that has a
    value, and a formula whole in which the last number stands. A last `\\boxed{` that is never closed is no answer.
    """
    if not text:
        return None
    if answer_format == "auto":
        stated = extract(text, "hash")
        if stated is not None and parse(stated) is not None:
            return stated
        boxed, behind = _boxed(text), text.rpartition("boxed")[2]
        if boxed and "final answer" in behind.lower() and parse(final := _answer_is(behind)) is not None:
            return final
        return boxed or _answer_is(text) or _unmarked(text)
    return {"hash": _hash, "boxed": _boxed, "answer-is": _answer_is, "last-number": _last_number}[answer_format](text)


def reference(gold: str) -> str:
    """The answer in a reference: behind its last `####`, inside its last `\\boxed{}`, in a last line `A: N`, or else all of it.

    Where all of it has no value, it is what the last "the answer is" says.
    """
    last = _LAST_LINE.search(gold)
    marked = _hash(gold) or _boxed(gold) or (last and last[1])
    return marked or (gold if parse(gold) is not None else _answer_is(gold) or gold)


def _hash(text: str) -> str | None:
    found = _HASH.findall(text)
    return found[-1].strip() or None if found else None


def _boxed(text: str) -> str | None:
    found = list(_BOXED.finditer(text))
    if not found:
        return None
    if found[-1][2]:
        return found[-1][2]
    depth, start = 1, found[-1].end()
    for place in range(start, len(text)):
        escaped = text[place - 1] == "\\"
        depth += 0 if escaped else (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place].strip() or None
    return None


def _answer_is(text: str) -> str | None:
    last = _LAST_LINE.search(text)
    found = [last[1]] if last else _ANSWER_IS.findall(text)
    if not found:
        return None
    said = _SENTENCE_END.split(_boxed(found[-1]) or found[-1])[0].strip(" *_")
    if parse(said) is not None:
        return said
    # A sentence around it: "the volume of $ABCD$ is 120", "18 apples that she sells", "at $x = 3$".
    said = _IS.split(said)[-1].strip()
    if parse(said) is not None:
        return said
    maths = _MATHS.search(said)
    number = LAST_NUMBER.search(plain_characters(said))
    return next(part for part in maths.groups() if part) if maths else number[0] if number else said or None


def _unmarked(text: str) -> str | None:
    plain, bare = plain_characters(text), text.strip()
    if len(bare) <= LONGEST_BARE and (_MATHS.fullmatch(bare) or not _MATHS.search(bare)) and parse(bare) is not None:
        return bare
    number, formula = (max(pattern.finditer(plain), key=re.Match.end, default=None) for pattern in (LAST_NUMBER, _MATHS))
    if formula is not None and (number is None or number.end() <= formula.end()):
        return next(part for part in formula.groups() if part).strip() or None
    return number[0] if number else None


def _last_number(text: str) -> str | None:
    found = LAST_NUMBER.findall(plain_characters(text))
    return found[-1] if found else None
