"""Where the final answer of an output stands. What it is worth is found in `values`, when two are equal in `comparison`."""

import re
from functools import lru_cache

from reward.answers.mentions import mentions
from reward.answers.notations import Ratio
from reward.answers.statements import LAST_WORDS, LONGEST_TAIL, MATHS, Statement, answer_in, chosen, headed, plainly
from reward.answers.values import Words, parse
from reward.config import READING, AnswerFormat, Reading

LONGEST_BARE = 300
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*(?:(\{)|(?<=\s)([^\s${}\\.,;]+))")
_BETWEEN = re.compile(
    r"(?:[\s$,;]|\\[()\[\], ;]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|(?<=[\s$])[A-Za-z]\s*=)*"
)
_SPECIAL_TOKEN = r"<\|[A-Za-z0-9_]+\|>|<｜[^<>｜\s]+｜>"
_LAST_LINE = re.compile(r"(?:\A|\n)A[:：]([^\n]*[^\s])\s*\Z")


def extract(text: str | None, answer_format: AnswerFormat, reading: Reading = READING) -> str | None:
    """The final answer as it is written, or None: the last `#### N`, the last `\\boxed{}`, what a last line `A: N`, or the last
    "the answer is", heading `# Answer` or `<answer>` says, or the last number.

    `auto` takes the last of these statements (a `####` only with a value behind it, as it heads sections too, and words behind
    a mark only where they are a value); else the whole text where that has a value, a formula whole in which the last number
    stands, or that number. A last `\\boxed{` that is never closed is no answer, nor are candidates.
    """
    text = _spoken(text or "", reading)
    if answer_format in ("auto", "answer-is"):
        return (_any if answer_format == "auto" else _answer_is)(text, reading) if text else None
    return {"hash": _hash, "boxed": _boxed, "last-number": _last_number}[answer_format](text)


def _spoken(text: str, reading: Reading) -> str:
    """What follows the reasoning, nothing where that is not finished; a mark of the end ends a line."""
    tags, ends = _marks(reading)  # pyright: ignore[reportArgumentType]  a frozen model of pydantic has a hash
    last = {match[0].lower(): match.end() for match in tags.finditer(text)}
    if not last:
        return ends.sub("\n", text).rstrip()
    positions = [[last.get(tag.lower(), 0) for tag in pair] for pair in reading.reasoning_tags]
    if any(opened > closed for opened, closed in positions):
        return ""
    return ends.sub("\n", text[max(closed for _, closed in positions) :]).rstrip()


@lru_cache(maxsize=64)
def _marks(reading: Reading) -> tuple[re.Pattern, re.Pattern]:
    """What finds the tags of reasoning, and the marks of the end."""
    tags = "|".join(re.escape(tag) for pair in reading.reasoning_tags for tag in pair) or "(?!)"
    return re.compile(tags, re.IGNORECASE), re.compile("|".join([*map(re.escape, reading.end_marks), _SPECIAL_TOKEN]))


def _any(text: str, reading: Reading) -> str | None:
    heads = [(match.start(), match[1].strip()) for match in _HASH.finditer(text)]
    boxed = max((match.start() for match in _BOXED.finditer(text)), default=None)
    marked = [head for head in heads if parse(head[1]) is not None] + ([] if boxed is None else [(boxed, _boxed(text))])
    if marked:
        position, answer = max(marked, key=lambda mark: mark[0])
        # A heading before the mark is no answer; one behind it is, where it has a value.
        said = [plainly(stated.words) for stated in _stated(text, reading) if stated.start > position]
        return next((words for words in reversed(said) if parse(words) is not None), answer)
    # The last line states the answer also where it is a sentence, or several.
    last = heads[-1][1] if heads else ""
    return _answer_is(text, reading) or (answer_in(last) if last and text.endswith(last) else _unmarked(text))


def _stated(text: str, reading: Reading) -> list[Statement]:
    """Every answer that is stated in words, in order."""
    return sorted([*headed(text, reading), *filter(None, [chosen(text)])])


def _answer_is(text: str, reading: Reading) -> str | None:
    line, stated = _LAST_LINE.search(text), _stated(text, reading)
    if line and (parse(line[1].strip()) is not None or not stated):
        return answer_in(line[1])
    if not stated:
        return None
    words = stated[-1].words
    said, rest = answer_in(_boxed(words) or words), text[stated[-1].end :].strip()
    # A heading of several lines that does not begin with the answer ends with it.
    later = _unmarked(rest) if rest and parse(said) is None else None
    return later if parse(later) is not None else said


def reference(gold: str) -> str:
    """The answer in a reference: behind its last `####`, inside its last `\\boxed{}`, in a last line `A: N`, or else all of it.

    Where all of it has no value, it is what the last "the answer is" says.
    """
    last = _LAST_LINE.search(gold)
    marked = _hash(gold) or _boxed(gold) or (last and last[1].strip())
    if marked or parse(gold) is not None:
        return marked or gold
    # An option and what it stands for: C Cecile.
    lettered = re.fullmatch(r"([A-J])\s+(\S.*)", gold.strip(), re.DOTALL)
    return _answer_is(gold, READING) or (f"({lettered[1]}) {lettered[2]}" if lettered else gold)


def _hash(text: str) -> str | None:
    found = _HASH.findall(text)
    return found[-1].strip() or None if found else None


def _boxed(text: str) -> str | None:
    found = list(_BOXED.finditer(text))
    if not found:
        return None
    inside, _ = _content(text, found[-1])
    # Boxes with nothing but "and", "or" or a comma between them are one answer, or candidates.
    start = found[-1].start()
    for before in reversed(found[:-1]):
        other, end = _content(text, before)
        if not (inside and other and end <= start and _BETWEEN.fullmatch(text[end:start])):
            break
        inside, start = inside if parse(other) == parse(inside) else f"{other}, {inside}", before.start()
    return inside


def _content(text: str, box: re.Match[str]) -> tuple[str | None, int]:
    """What stands in a box, None where it is empty or never closed, and where the box ends."""
    if box[2]:
        return box[2], box.end()
    depth, start = 1, box.end()
    for position in range(start, len(text)):
        escaped = text[position - 1] == "\\"
        depth += 0 if escaped else (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start:position].strip() or None, position + 1
    return None, len(text)


def _unmarked(text: str) -> str | None:
    tail, bare = text[-LONGEST_TAIL:], text.strip()
    named = LAST_WORDS.search(tail)
    if len(bare) <= LONGEST_BARE and (MATHS.fullmatch(bare) or not MATHS.search(bare)) and (value := parse(bare)) is not None:
        return named[1] if named and isinstance(value, Words) else bare
    if named and isinstance(parse(named[1]), Ratio):
        return named[1]
    number = max(mentions(tail), key=lambda mention: mention.end, default=None)
    formula = max(MATHS.finditer(tail), key=re.Match.end, default=None)
    if formula is not None and (number is None or number.end <= formula.end()):
        return next(part for part in formula.groups() if part).strip() or None
    return number.text if number else named[1] if named and parse(named[1]) is not None else None


def _last_number(text: str) -> str | None:
    last = max(mentions(text), key=lambda mention: mention.end, default=None)
    return last and last.text
