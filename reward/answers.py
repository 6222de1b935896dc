"""Where the final answer of an output stands. What it is worth is found in `values`, when two are equal in `comparison`."""

import re
from functools import lru_cache

from reward.config import READING, AnswerFormat, Reading
from reward.dress import FUNCTIONS, plain_characters
from reward.values import LAST_NUMBER, parse

LONGEST_BARE = 300
LONGEST_TAIL = 2000
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*(?:(\{)|(?<=\s)([^\s${}\\.,;]+))")
_BETWEEN = re.compile(
    r"(?:[\s$,;]|\\[()\[\], ;]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|(?<=[\s$])[A-Za-z]\s*=)*"
)
# Also a heading of this name, and a tag.
_ANSWER_IS = re.compile(
    r"(?:(?:answer|答案)[\s*_]*(?:is|are|[:：=是为]|(?=不))|<answer>"
    r"|(?:\A|\n)[ \t]*(?:[#*_]+[ \t]*(?:the )?)?(?:final )?answer[ \t*_]*\n)"
    r"[\s*_]*(?:[:：=])?[\s*_]*(\\\[[^\[\]]*\\\]|\$\$[^$]*\$\$|\\begin\{(?s:.*?)\\end\{[a-z]+\}|[^\n]*?)\s*(?=</answer>|\n|\Z)",
    re.IGNORECASE,
)
_SPECIAL_TOKEN = r"<\|[A-Za-z0-9_]+\|>|<｜[^<>｜\s]+｜>"
_LAST_LINE = re.compile(r"(?:\A|\n)A[:：]([^\n]*[^\s])\s*\Z")
_IS = re.compile(r"\b(?:is|are)\b(?=.*[0-9$\\])", re.DOTALL)
# What follows "or", or another candidate, belongs to the answer: a list of candidates is none.
_SENTENCE_END = re.compile(
    r"[。！]|(?<!\\)!(?=\s|$)|[；;](?!\s*[-$0-9])|\.(?![0-9])|\bbecause\b|\bsince\b"
    rf"|, (?=[A-Za-z]{{2}})(?!(?:{FUNCTIONS}|pi|infinity|inf|oo|or|maybe|perhaps|possibly)\b|[A-Za-z]+(?:,|[.!?]?$))"
)
_FINAL = re.compile("final answer|<answer>", re.IGNORECASE)
_NO_STATEMENT = re.compile(r"(?:in)?correct\b|right\b|wrong\b|clear\b|reasonable\b|as follows|below|above", re.IGNORECASE)
_SEVERAL = re.compile(r"\b(?:not|either|or|between|maybe|perhaps|possibly|one of)\b|或|不是", re.IGNORECASE)
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def extract(text: str | None, answer_format: AnswerFormat, reading: Reading = READING) -> str | None:
    """The final answer as it is written, or None: the last `#### N`, the last `\\boxed{}`, what a last line `A: N`, or the last
    "the answer is", heading `# Answer` or `<answer>` says, or the last number.

    `auto` takes the last `####` or `\\boxed{}` (a `####` only with a value behind it, as it heads sections too), or the "final
    answer" stated behind a box; else what is stated in words; else the whole text where that has a value, a formula whole in
    which the last number stands, or that number. A last `\\boxed{` that is never closed is no answer, nor are candidates.
    """
    text = _spoken(text or "", reading)
    if not text:
        return None
    if answer_format == "auto":
        return _any(text)
    return {"hash": _hash, "boxed": _boxed, "answer-is": _answer_is, "last-number": _last_number}[answer_format](text)


def _spoken(text: str, reading: Reading) -> str:
    """What follows the reasoning, nothing where that is not finished; a mark of the end ends a line."""
    tags, ends = _marks(reading)
    last = {match[0].lower(): match.end() for match in tags.finditer(text)} if reading.reasoning_tags else {}
    places = [[last.get(tag.lower(), 0) for tag in pair] for pair in reading.reasoning_tags]
    if any(opened > closed for opened, closed in places):
        return ""
    return ends.sub("\n", text[max((closed for _, closed in places), default=0) :]).rstrip()


@lru_cache(maxsize=64)
def _marks(reading: Reading) -> tuple[re.Pattern, re.Pattern]:
    tags = "|".join(re.escape(tag) for pair in reading.reasoning_tags for tag in pair)
    return re.compile(tags, re.IGNORECASE), re.compile("|".join([*map(re.escape, reading.end_marks), _SPECIAL_TOKEN]))


def _any(text: str) -> str | None:
    boxed, behind = _boxed(text), text.rpartition("boxed")[2]
    stated, final = _hash(text), _answer_is(behind) if boxed and _FINAL.search(behind) else None
    # A heading before the box is no answer, and one behind it is.
    if parse(stated) is not None and not ("boxed" in text and "####" not in behind):
        return stated
    if parse(final) is not None:
        return final
    if boxed or re.search(r"boxed\s*\{", text):
        return boxed
    # The last line states the answer also where it is a sentence, or several.
    last = stated if stated and text.rstrip().endswith(stated) else None
    return _answer_is(text) or (_said(last) if last else _unmarked(text))


def reference(gold: str) -> str:
    """The answer in a reference: behind its last `####`, inside its last `\\boxed{}`, in a last line `A: N`, or else all of it.

    Where all of it has no value, it is what the last "the answer is" says.
    """
    last = _LAST_LINE.search(gold)
    marked = _hash(gold) or _boxed(gold) or (last and last[1].strip())
    return marked or (gold if parse(gold) is not None else _answer_is(gold) or gold)


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
    for place in range(start, len(text)):
        escaped = text[place - 1] == "\\"
        depth += 0 if escaped else (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place].strip() or None, place + 1
    return None, len(text)


def _answer_is(text: str) -> str | None:
    last = _LAST_LINE.search(text)
    found = [last[1].strip()] if last else [said for said in _ANSWER_IS.findall(text) if not _NO_STATEMENT.match(said)]
    return _said(found[-1]) if found else None


def _said(sentence: str) -> str | None:
    """The answer in what stands behind "the answer is"; all of it where that is several."""
    said = _SENTENCE_END.split(_boxed(sentence) or sentence[:LONGEST_BARE])[0].strip(" *_")
    if parse(said) is not None:
        return said
    # What it is made of stands behind it: "72 (48 + 24)".
    bare = re.sub(r"\s+\([^()]*\)\W*$", "", said)
    if parse(bare) is not None and not _SEVERAL.search(said):
        return bare
    # A sentence around it: "the volume of $ABCD$ is 120", "48 + 24 = 72 clips", "18 apples that she sells", "at $x = 3$".
    said = _IS.split(said)[-1].strip()
    if parse(said) is not None:
        return said
    worked = said.rpartition("=")[2].strip(" $") if "," not in said else said
    if parse(worked) is not None and not _SEVERAL.search(said):
        return worked
    maths = _MATHS.findall(said)
    numbers = LAST_NUMBER.findall(plain_characters(said))
    if _SEVERAL.search(said) or len(maths) > 1 or not maths and len({parse(number) for number in numbers}) > 1:
        return said
    return next(part for part in maths[0] if part) if maths else numbers[0] if numbers else said or None


def _unmarked(text: str) -> str | None:
    plain, bare = plain_characters(text[-LONGEST_TAIL:]), text.strip()
    if len(bare) <= LONGEST_BARE and (_MATHS.fullmatch(bare) or not _MATHS.search(bare)) and parse(bare) is not None:
        return bare
    numbers = [found for found in LAST_NUMBER.finditer(plain) if not _inside_a_word(plain, *found.span())]
    number, formula = (max(found, key=re.Match.end, default=None) for found in (numbers, _MATHS.finditer(plain)))
    if formula is not None and (number is None or number.end() <= formula.end()):
        return next(part for part in formula.groups() if part).strip() or None
    return number[0] if number else None


def _inside_a_word(text: str, start: int, end: int) -> bool:
    return bool(re.match("[A-Za-z]", text[start - 1 : start]) and re.match("[A-Za-z]", text[end:]))


def _last_number(text: str) -> str | None:
    found = LAST_NUMBER.findall(plain_characters(text))
    return found[-1] if found else None
