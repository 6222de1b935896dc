"""The built-in task, chained arithmetic, and a small model for it: the project runs with nothing downloaded.

A question is a sum such as `17 + 8 - 9 + 3`; the worked output has one step a line and ends in `#### N`; every value on the
way lies in 10..29. Held-out items are disjoint from training items by construction: an item is held out if and only if
the blake2b digest of its question text, modulo 8, is 0.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from rollout.files import as_umask_says

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SMALLEST, LARGEST = 10, 29
LARGEST_OPERAND = 9
HELD_OUT = 1 / 8
ROLE = {True: "to hold out", False: "to train on"}
COUNTABLE = 2_000_000
"""Of more questions than these no more than half of a share are made, so that nobody need count it."""
TASK_CHARACTERS = "\n #+-=0123456789"
CODE_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CODE_WORDS = ("```", "python", "print", "output")
SMALL_MODELS = {"small-llama": (TASK_CHARACTERS,), "small-llama-code": (CODE_CHARACTERS, CODE_WORDS)}
"""The characters and words of each model's tokenizer."""

# The roles need no marks of their own: a prompt is <bos>question\n, in the chat form and in the plain form.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)


class Asks(Protocol):
    """An item of a task."""

    @property
    def question(self) -> str: ...


T = TypeVar("T", bound=Asks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One sum. Example: Item(start=17, operations=(("+", 8), ("-", 9))) asks `17 + 8 - 9`; its answer is 16."""

    start: int
    operations: tuple[tuple[str, int], ...]
    """Signs, + or -, with their operands, 1..9."""

    @property
    def question(self) -> str:
        return " ".join([str(self.start), *(f"{sign} {operand}" for sign, operand in self.operations)])

    @property
    def answer(self) -> str:
        return str(self.start + sum(operand if sign == "+" else -operand for sign, operand in self.operations))

    @property
    def output(self) -> str:
        """The right worked output."""
        return demonstration(self, 0.0, random.Random(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """All different questions of a task."""

    total: int
    every: Callable[[], Iterator[str]]

    def most(self, wanted: int, held_out: bool) -> int:
        """How many may be made to hold out, or to train on: all, where `wanted` comes near them and they can be counted."""
        half = int(self.total * (HELD_OUT if held_out else 1 - HELD_OUT) / 2)
        if wanted <= half or self.total > COUNTABLE:
            return half
        return sum(is_held_out(question) == held_out for question in self.every())


def items(seed: int | str, count: int, held_out: bool, lengths: tuple[int, int] = (3, 3)) -> list[Item]:
    """`count` different items, the same for the same seed; `lengths` are the least and the most operations.

    Raises ValueError where there are not as many.
    """
    rng = random.Random(f"chained-arithmetic/{seed}/{held_out}")
    return distinct(_endless(rng, lengths), count, held_out, questions(lengths))


def questions(lengths: tuple[int, int]) -> Questions:
    """All sums of so many operations, the least and the most."""
    if not 1 <= lengths[0] <= lengths[1]:
        raise ValueError(f"lengths: {lengths}; expected (least, most) with 1 <= least <= most")
    ways, total = dict.fromkeys(range(SMALLEST, LARGEST + 1), 1), 0
    """By value, the sums of n - 1 operations that end in it."""
    for n in range(1, lengths[1] + 1):
        after = [(value, ways[before]) for before in ways for _, _, value in _moves(before)]
        ways = {value: sum(count for at, count in after if at == value) for value in ways}
        total += sum(ways.values()) if n >= lengths[0] else 0

    def grown(text: str, value: int, left: int) -> Iterator[str]:
        if not left:
            yield text
        for sign, operand, result in _moves(value) if left else ():
            yield from grown(f"{text} {sign} {operand}", result, left - 1)

    def every() -> Iterator[str]:
        for n in range(lengths[0], lengths[1] + 1):
            for start in range(SMALLEST, LARGEST + 1):
                yield from grown(str(start), start, n)

    return Questions(total=total, every=every)


def _moves(value: int) -> Iterator[tuple[str, int, int]]:
    """(sign, operand, result) of every operation that stays in range."""
    for operand in range(1, LARGEST_OPERAND + 1):
        if value + operand <= LARGEST:
            yield "+", operand, value + operand
        if value - operand >= SMALLEST:
            yield "-", operand, value - operand


def distinct(endless: Iterator[T], count: int, held_out: bool, questions: Questions) -> list[T]:
    """The first `count` items with different questions, all of them held out or none.

    Raises ValueError where there are not as many.
    """
    if count > (most := questions.most(count, held_out)):
        raise ValueError(f"{count} different questions {ROLE[held_out]} asked for; expected at most {most}")
    found: dict[str, T] = {}
    for item in endless:
        if len(found) == count:
            break
        if is_held_out(item.question) == held_out:
            found.setdefault(item.question, item)
    return list(found.values())


def _endless(rng: random.Random, lengths: tuple[int, int]) -> Iterator[Item]:
    while True:
        start = value = rng.randint(SMALLEST, LARGEST)
        operations = []
        for _ in range(rng.randint(*lengths)):
            signs = [sign for sign, room in (("+", LARGEST - value), ("-", value - SMALLEST)) if room > 0]
            sign = rng.choice(signs)
            operand = rng.randint(1, min(LARGEST_OPERAND, LARGEST - value if sign == "+" else value - SMALLEST))
            value += operand if sign == "+" else -operand
            operations.append((sign, operand))
        yield Item(start=start, operations=tuple(operations))


def is_held_out(question: str) -> bool:
    """For a share of HELD_OUT of all questions."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "little") % 8 == 0


def demonstration(item: Item, imperfect: float, rng: random.Random) -> str:
    """A worked output in which, with probability `imperfect` at each step that carries or borrows, that is forgotten.

    The step is then off by ten, and the rest follows from the wrong value: well-formed, with a wrong answer. A mistake
    that would take a later value out of 10..29 is not made.
    """
    value, lines = item.start, []
    for index, (sign, operand) in enumerate(item.operations):
        change = operand if sign == "+" else -operand
        result = value + change
        carries = not 0 <= value % 10 + (operand % 10 if sign == "+" else -(operand % 10)) <= 9
        if carries and rng.random() < imperfect:
            wrong = result - 10 if sign == "+" else result + 10
            if _stays_in_range(wrong, item.operations[index + 1 :]):
                result = wrong
        lines.append(f"{value}{sign}{operand}={result}")
        value = result
    return "\n".join([*lines, f"#### {value}"])


def _stays_in_range(value: int, operations: tuple[tuple[str, int], ...]) -> bool:
    values = [value]
    for sign, operand in operations:
        values.append(values[-1] + (operand if sign == "+" else -operand))
    return all(SMALLEST <= x <= LARGEST for x in values)


def character_tokenizer(characters: str = TASK_CHARACTERS, words: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """One token for each of the words and each other character; ids 0..3 are <pad>, <bos>, <eos>, <unk>.

    Decoding gives back the exact text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *characters, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*map(re.escape, words), r"[\s\S]"])), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_small_llama(directory: Path, seed: int, name: str = "small-llama", tied: bool = False) -> None:
    """Write a Hugging Face directory with a random Llama of 2.4 million parameters (float32) and its tokenizer.

    `small-llama` knows the characters of chained arithmetic, `small-llama-code` those of programs. `tied` shares the output
    head with the embedding.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = character_tokenizer(*SMALL_MODELS[name])
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        # The default, 0.02, suits wide models; at this width it makes the first hundreds of steps idle.
        initializer_range=0.08,
        tie_word_embeddings=tied,
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    as_umask_says(directory)
