"""Labels of reasoning steps by a rule, in the pool's processes: the built-in chained arithmetic, and GSM8K's calculator marks.

A step is right (1.0) or wrong (0.0); everything from the first mistake on is wrong, since it follows from a wrong value. The
step that states the final answer is judged by that answer alone, as in Math-Shepherd (arXiv 2312.08935).
"""

import ast
import operator
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from reward.answers.equality import same
from reward.answers.extract import extract, reference
from reward.config import READING, AnswerFormat, Reading

_SUM = re.compile(r"\s*\d+(?:\s*[-+]\s*\d+)+\s*")
# Python refuses to read numbers of thousands of digits, which a policy may well write.
_OPERATION = re.compile(r"(-?\d{1,18})([-+])(\d{1,18})=(-?\d{1,18})")
_STATED = re.compile(r"####(-?\d{1,18})")
_MARK = re.compile(r"<<([^<>]*)>>")
_EXPRESSION = re.compile(r"[-+*/().0-9 ]{1,200}")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def rule_labels(
    question: str, gold: str, steps: Sequence[str], answer_format: AnswerFormat, reading: Mapping[str, Any] | None = None
) -> list[float | None]:
    """The rule that fits: a sum as the question, marks in the gold answer or in the output; else no step has a label."""
    if _SUM.fullmatch(question):
        return arithmetic_steps(question, steps)
    if any(_MARK.search(text) for text in (gold, *steps)):
        return calculator_steps(gold, steps, answer_format, Reading(**reading or {}))
    return [None] * len(steps)


def arithmetic_steps(question_text: str, step_texts: Sequence[str]) -> list[float | None]:
    """Steps of `17 + 8 - 9`: right is `17+8=25`, then `25-9=16`, then `#### 16`.

    A step of several lines is right if each of them is, one without lines is wrong. A line that is neither of these is a
    mistake. Raises ValueError for a question that is no sum.
    """
    if not _SUM.fullmatch(question_text):
        raise ValueError(f"question {question_text!r:.80}: expected a sum such as '17 + 8 - 9'")
    plain = re.sub(r"\s", "", question_text)
    value, *changes = (int(number) for number in re.findall(r"[-+]?\d+", plain))
    answer = value + sum(changes)
    rest, right = list(reversed(changes)), True
    labels: list[float | None] = []
    for text in step_texts:
        marks = []
        for line in re.sub(r"[ \t]", "", text).split():
            if stated := _STATED.fullmatch(line):
                marks.append(int(stated[1]) == answer)
                continue
            operation = _OPERATION.fullmatch(line)
            change = rest.pop() if rest else None
            right = right and change is not None and operation is not None and _is(operation, value, change)
            value += change or 0
            marks.append(right)
        labels.append(float(bool(marks) and all(marks)))
    return labels


def _is(operation: re.Match[str], value: int, change: int) -> bool:
    left, sign, operand, result = operation.groups()
    return (int(left), int(sign + operand), int(result)) == (value, change, value + change)


def calculator_steps(
    gold: str, step_texts: Sequence[str], answer_format: AnswerFormat = "hash", reading: Reading = READING
) -> list[float | None]:
    """Steps with marks such as `<<48/2=24>>`: every mark must hold exactly, in fractions.

    A step without marks has the label of the step before it (none before the first mark); the last step's is whether the
    final answer, as `answer_format` finds it, has the gold answer's value.
    """
    if not step_texts:
        return []
    labels: list[float | None] = []
    for text in step_texts:
        marks = _MARK.findall(text)
        before = labels[-1] if labels else None
        labels.append(float(before != 0.0 and all(map(_holds, marks))) if marks else before)
    return [*labels[:-1], float(same(reference(gold), extract("".join(step_texts), answer_format, reading)))]


def _holds(mark: str) -> bool:
    """Whether `expression=result` is true."""
    sides = [evaluate(side) for side in mark.split("=")]
    return len(sides) == 2 and sides[0] is not None and sides[0] == sides[1]


def evaluate(expression: str) -> Fraction | None:
    """The exact value of a formula of numbers, + - * / and parentheses; None for anything else, and for division by zero."""
    plain = expression.replace(",", "").strip()
    if not _EXPRESSION.fullmatch(plain):
        return None
    try:
        return _value(ast.parse(plain, mode="eval").body, plain)
    except (SyntaxError, ZeroDivisionError, KeyError, ValueError):
        return None


def _value(node: ast.expr, source: str) -> Fraction:
    """Raises KeyError for a node that is not arithmetic."""
    match node:
        case ast.Constant():
            # From the digits: 0.1 as a float is not a tenth.
            return Fraction(ast.get_source_segment(source, node) or "")
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand, source)
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_value(node.left, source), _value(node.right, source))
    raise KeyError(type(node).__name__)
