"""Questions and demonstrations of a run, rendered and in a fixed order.

An ordinal counts the questions of a stage without end: ordinal n is row `order_e[n % N]` of epoch e = n // N, and each
epoch has a permutation of its own drawn from the seed. So the order of a run depends on nothing but its seed. All rows
are checked when they are loaded. The judge's view of the reference answers comes in as a callable, because this package
may not import `reward`.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rollout import tasks
from rollout.config import DataConfig, PromptConfig, SourceConfig
from rollout.prompts import encode_response, end_token_id, render
from rollout.rows import Row, fill, load_rows, reject
from rollout.types import FinishReason, Question, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK_TRAINING_ROWS = 4096
TASK_EVALUATION_ROWS = 200

GoldCheck = Callable[[str], str | None]
"""A reference answer -> why it cannot be judged, or None when it can."""


class _Order:
    """Ordinals to rows: every row once per epoch."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._epoch, self._rows = -1, []

    def row(self, ordinal: int) -> int:
        epoch, place = divmod(ordinal, self._size)
        if epoch != self._epoch:
            rows = list(range(self._size))
            random.Random(f"{self._seed}/epoch {epoch}").shuffle(rows)
            self._epoch, self._rows = epoch, rows
        return self._rows[place]


class QuestionSet:
    """Questions by ordinal. `len` is the number of questions in an epoch."""

    def __init__(self, questions: Sequence[Question], seed: int):
        self._questions = list(questions)
        self._order = _Order(len(self._questions), seed)

    def __len__(self) -> int:
        return len(self._questions)

    def question(self, ordinal: int) -> Question:
        return replace(self._questions[self._order.row(ordinal)], ordinal=ordinal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A question with a demonstrated output, both in tokens."""

    question: Question
    text: str
    output_ids: tuple[int, ...]
    """Ends with the token that ends an output."""


class DemonstrationSet:
    """Demonstrations by ordinal. `len` is the number of demonstrations in an epoch."""

    def __init__(self, demonstrations: Sequence[Demonstration], seed: int):
        self._demonstrations = list(demonstrations)
        self._order = _Order(len(self._demonstrations), seed)

    def __len__(self) -> int:
        return len(self._demonstrations)

    def sample(self, ordinal: int, stage: str) -> Sample:
        """The demonstration as a Sample: version 0, every token trained, no log-probabilities, a group of its own."""
        shown = self._demonstrations[self._order.row(ordinal)]
        return Sample(
            ordinal=ordinal,
            group_id=f"{stage}/{ordinal}",
            index=0,
            attempt=0,
            prompt_ids=shown.question.prompt_ids,
            output_ids=shown.output_ids,
            sampled_mask=(True,) * len(shown.output_ids),
            logprobs=(),
            text=shown.text,
            versions=((0, 0),),
            finish_reason=FinishReason.STOP,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """All data of a run. No training question or demonstration has the text of an evaluation question."""

    train: QuestionSet
    evaluation: list[Question]
    """Ordinals 0, 1, ... in the order of their source."""
    demonstrations: DemonstrationSet | None
    removed_questions: int
    """Training questions left out because an evaluation question has the same text."""
    removed_demonstrations: int


def load_data(config: DataConfig, tokenizer: "PreTrainedTokenizerBase", seed: int, gold_check: GoldCheck) -> Data:
    """Load and check everything. Raises ValueError, naming file and line, for any row that cannot be used."""
    # What is wrong with the tokenizer is said once, not for every row.
    end_token_id(tokenizer, config.prompt)
    loader = _Loader(tokenizer, config.prompt, config.max_prompt_tokens, gold_check)
    questions = loader.questions(_rows(config.questions, seed, "questions"), config.questions)
    if config.evaluation is not None:
        evaluation = loader.questions(_rows(config.evaluation, seed, "evaluation"), config.evaluation)
    elif config.questions.task is not None:
        source = config.questions.model_copy(update={"rows": config.hold_out})
        evaluation = loader.questions(_rows(source, seed, "evaluation"), source)
    else:
        questions, evaluation = _hold_out(questions, config.hold_out, seed)
    held_out = {_key(question) for question in evaluation}
    train = _without(questions, held_out)
    if not train:
        raise ValueError(f"no training question is left: all {len(questions)} have the text of an evaluation question")
    shown, kept = [], []
    if config.demonstrations is not None:
        shown = loader.demonstrations(_rows(config.demonstrations, seed, "demonstrations"), config.demonstrations)
        kept = [x for x in shown if _key(x.question) not in held_out]
        if not kept:
            raise ValueError(f"no demonstration is left: all {len(shown)} have the text of an evaluation question")
    return Data(
        train=QuestionSet(train, seed),
        evaluation=[replace(question, ordinal=place) for place, question in enumerate(evaluation)],
        demonstrations=DemonstrationSet(kept, seed) if kept else None,
        removed_questions=len(questions) - len(train),
        removed_demonstrations=len(shown) - len(kept),
    )


def _rows(source: SourceConfig, seed: int, purpose: str) -> list[Row]:
    if source.task is None:
        return load_rows(source)
    held_out = purpose == "evaluation"
    count = source.rows or (TASK_EVALUATION_ROWS if held_out else TASK_TRAINING_ROWS)
    rng = random.Random(f"{seed}/mistakes")
    return [
        Row(
            where=f"{source.task}/{purpose}:{number}",
            columns={
                "question": item.question,
                "answer": item.answer,
                "response": tasks.demonstration(item, source.imperfect, rng),
            },
        )
        for number, item in enumerate(tasks.items(f"{seed}/{purpose}", count, held_out), start=1)
    ]


def _hold_out(questions: list[Question], count: int, seed: int) -> tuple[list[Question], list[Question]]:
    if count >= len(questions):
        raise ValueError(
            f"data.hold_out: {count}, and there are {len(questions)} questions; expected fewer, to leave some to train on"
        )
    chosen = set(random.Random(f"{seed}/hold out").sample(range(len(questions)), count))
    left = [question for place, question in enumerate(questions) if place not in chosen]
    return left, [questions[place] for place in sorted(chosen)]


def _without(questions: Sequence[Question], held_out: Collection[str]) -> list[Question]:
    return [question for question in questions if _key(question) not in held_out]


def _key(question: Question) -> str:
    """Texts that differ in blanks or case only are the same question."""
    return " ".join(question.text.split()).casefold()


class _Loader:
    """Rows to questions and demonstrations, with every check that needs the tokenizer or the judge."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig, limit: int, gold_check: GoldCheck):
        self._tokenizer, self._prompt, self._limit, self._gold_check = tokenizer, prompt, limit, gold_check

    def questions(self, rows: Sequence[Row], source: SourceConfig) -> list[Question]:
        golds = fill(rows, source.answer, "answer")
        reasons = [(row.where, self._gold_check(gold)) for row, gold in zip(rows, golds, strict=True)]
        reject([(where, reason) for where, reason in reasons if reason is not None], "the reference answer cannot be judged")
        return self._ask(rows, source, golds)

    def demonstrations(self, rows: Sequence[Row], source: SourceConfig) -> list[Demonstration]:
        template = source.response or ("{response}" if source.task is not None else None)
        if template is None:
            raise ValueError("demonstrations.response: not given; expected a template for the demonstrated output")
        texts = fill(rows, template, "response")
        # The reference answer of a demonstration is never judged, and its source need not have one.
        questions = self._ask(rows, source, [""] * len(rows))
        encoded = self._each(rows, texts, lambda text: encode_response(self._tokenizer, text, self._prompt))
        return [
            Demonstration(question=question, text=text, output_ids=ids)
            for question, text, ids in zip(questions, texts, encoded, strict=True)
        ]

    def _ask(self, rows: Sequence[Row], source: SourceConfig, golds: Sequence[str]) -> list[Question]:
        texts = fill(rows, source.question, "question")
        prompts = self._each(rows, texts, lambda text: render(self._tokenizer, text, self._prompt))
        lengths = [(row.where, f"{len(ids)} tokens") for row, ids in zip(rows, prompts, strict=True) if len(ids) > self._limit]
        reject(lengths, f"the prompt is longer than data.max_prompt_tokens: {self._limit}")
        return [
            Question(ordinal=0, id=row.where, text=text, gold=gold, prompt_ids=ids)
            for row, text, gold, ids in zip(rows, texts, golds, prompts, strict=True)
        ]

    def _each(
        self, rows: Sequence[Row], texts: Sequence[str], encode: Callable[[str], tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        done, problems = [], []
        for row, text in zip(rows, texts, strict=True):
            try:
                done.append(encode(text))
            except ValueError as error:
                problems.append((row.where, str(error)))
        reject(problems, "cannot be put into tokens")
        return done
