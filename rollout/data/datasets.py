"""Questions and demonstrations of a run, rendered and in a fixed order.

An ordinal counts the questions of a stage without end: ordinal n is row `order_e[n % N]` of epoch e = n // N, and each
epoch has a permutation of its own drawn from the seed. So the order of a run depends on nothing but its seed. All rows
are checked when they are loaded. The judge's view of the reference answers comes in as a callable, because this package
may not import `reward`.
"""

import logging
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rollout.config import (
    DataConfig,
    DemonstrationsConfig,
    LabelledStepsConfig,
    PreferencesConfig,
    QuestionsConfig,
    SourceConfig,
)
from rollout.data.ordering import Ordered
from rollout.data.prompts import encode_response, encode_steps, end_token_id, render
from rollout.data.recorded import LabelledOutput, LabelledSet, Output, Preference, PreferenceSet, given, read_steps
from rollout.data.rows import Row, as_json, load_rows, reject, source_rows
from rollout.data.templates import fill, fill_each, fill_questions, text_of
from rollout.types import Question, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

HOLD_OUT = 200
"""Questions of a file that are held out where nothing else is said."""
DROPPED = "data.drop_unjudgeable: true leaves such questions out"

GoldCheck = Callable[[Sequence[str]], list[str | None]]
"""Reference answers -> for each why it cannot be judged, or None when it can."""


class QuestionSet(Ordered[Question]):
    """Questions by ordinal."""

    def question(self, ordinal: int, row: int | None = None) -> Question:
        """The question of an ordinal: the fixed order's, unless a selection names another row."""
        return replace(self.at(ordinal) if row is None else self.rows[row], ordinal=ordinal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A question with a demonstrated output."""

    question: Question
    output: Output


class DemonstrationSet(Ordered[Demonstration]):
    """Demonstrations by ordinal."""

    def sample(self, ordinal: int, stage: str) -> Sample:
        """The demonstration as a Sample, a group of its own."""
        shown = self.at(ordinal)
        return given(shown.question, shown.output, group_id=f"{stage}/{ordinal}", ordinal=ordinal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """All data of a run. No training question or demonstration has the text of an evaluation question."""

    train: QuestionSet
    evaluation: list[Question]
    """Ordinals 0, 1, ... in the order of their source."""
    demonstrations: DemonstrationSet | None
    preferences: PreferenceSet | None
    labelled_steps: LabelledSet | None
    unjudgeable: int
    """Questions left out, where `drop_unjudgeable` asks for that: their reference answer is absent or cannot be judged."""
    removed_questions: int
    """Training questions left out because an evaluation question has the same text."""
    removed_outputs: int
    """Demonstrations, preferences and labelled outputs left out for the same reason."""


def load_data(
    config: DataConfig, tokenizer: "PreTrainedTokenizerBase", seed: int, gold_check: GoldCheck, tools: bool = False
) -> Data:
    """Load and check everything. Raises ValueError, naming file and line, for any row that cannot be used.

    With `tools` what programs printed in given outputs is not trained.
    """
    # What is wrong with the tokenizer is said once, not for every row.
    end_token_id(tokenizer, config.prompt)
    loader = _Loader(tokenizer, config, gold_check, tools)
    questions = loader.questions(source_rows(config.questions, seed, "questions"), config.questions)
    if config.evaluation is not None:
        evaluation = loader.questions(source_rows(config.evaluation, seed, "evaluation"), config.evaluation)
    elif config.questions.task is not None:
        source = config.questions.model_copy(update={"rows": config.hold_out})
        evaluation = loader.questions(source_rows(source, seed, "evaluation", "data.hold_out"), source)
    else:
        questions, evaluation = _hold_out(questions, config.hold_out or HOLD_OUT, seed)
    held_out = {_key(question) for question in evaluation}
    train = _without(questions, held_out)
    if not train:
        raise ValueError(f"no training question is left: all {len(questions)} have the text of an evaluation question")
    removed = 0

    def left(source: SourceConfig | None, name: str, load: Callable) -> list:
        """What a source gives, without rows whose question is an evaluation question."""
        nonlocal removed
        if source is None:
            return []
        rows = load(source_rows(source, seed, name), source)
        kept = [x for x in rows if _key(x.question) not in held_out]
        if not kept:
            raise ValueError(f"data.{name}: none is left: all {len(rows)} have the text of an evaluation question")
        removed += len(rows) - len(kept)
        return kept

    demonstrations = left(config.demonstrations, "demonstrations", loader.demonstrations)
    preferences = left(config.preferences, "preferences", loader.preferences)
    labelled = left(config.labelled_steps, "labelled_steps", loader.labelled_steps)
    return Data(
        train=QuestionSet(train, seed),
        evaluation=[replace(question, ordinal=index) for index, question in enumerate(evaluation)],
        demonstrations=DemonstrationSet(demonstrations, seed) if demonstrations else None,
        preferences=PreferenceSet(preferences, seed) if preferences else None,
        labelled_steps=LabelledSet(labelled, seed) if labelled else None,
        unjudgeable=loader.unjudgeable,
        removed_questions=len(questions) - len(train),
        removed_outputs=removed,
    )


def load_questions(config: DataConfig, tokenizer: "PreTrainedTokenizerBase", gold_check: GoldCheck) -> list[Question]:
    """All rows of the question set in the order of its file, and nothing else. Raises ValueError as `load_data` does."""
    loader = _Loader(tokenizer, config, gold_check, tools=False)
    questions = loader.questions(load_rows(config.questions), config.questions)
    if loader.unjudgeable:
        log.warning("%d questions are left out: their reference answer is absent or cannot be judged", loader.unjudgeable)
    return [replace(question, ordinal=index) for index, question in enumerate(questions)]


def _hold_out(questions: list[Question], count: int, seed: int) -> tuple[list[Question], list[Question]]:
    if count >= len(questions):
        raise ValueError(
            f"data.hold_out: {count}, and there are {len(questions)} questions; expected fewer, to leave some to train on"
        )
    chosen = set(random.Random(f"{seed}/hold out").sample(range(len(questions)), count))
    left = [question for index, question in enumerate(questions) if index not in chosen]
    return left, [questions[index] for index in sorted(chosen)]


def _without(questions: Sequence[Question], held_out: Collection[str]) -> list[Question]:
    return [question for question in questions if _key(question) not in held_out]


def _key(question: Question) -> str:
    """Texts that differ in blanks or case only are the same question."""
    return " ".join(question.text.split()).casefold()


class _Loader:
    """Rows to questions and demonstrations, with every check that needs the tokenizer or the judge."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, gold_check: GoldCheck, tools: bool):
        self._tokenizer, self._prompt, self._limit = tokenizer, config.prompt, config.max_prompt_tokens
        self._gold_check, self._tools = gold_check, tools
        self._drop, self.unjudgeable = config.drop_unjudgeable, 0

    def questions(self, rows: Sequence[Row], source: QuestionsConfig) -> list[Question]:
        golds = fill_each(rows, source.answer, "answer")
        reasons = self._reasons(golds)
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        if not self._drop or not kept:
            fill(rows, source.answer, "answer", f"; {DROPPED}")
            bad = [(row.where, reason) for row, reason in zip(rows, reasons, strict=True) if reason is not None]
            reject(bad, f"the reference answer cannot be judged; {DROPPED}")
        self.unjudgeable += len(rows) - len(kept)
        return self._ask([rows[i] for i in kept], source, [str(golds[i]) for i in kept])

    def _reasons(self, golds: Sequence[str | ValueError]) -> list[str | None]:
        """For each reference answer why there is none or why it cannot be judged, or None."""
        found = iter(self._gold_check([gold for gold in golds if isinstance(gold, str)]))
        return [next(found) if isinstance(gold, str) else str(gold) for gold in golds]

    def demonstrations(self, rows: Sequence[Row], source: DemonstrationsConfig) -> list[Demonstration]:
        texts = fill(rows, source.response or "{response}", "response")
        questions = self._ask(rows, source, [""] * len(rows))
        outputs = self._outputs(rows, texts)
        return [Demonstration(question=question, output=output) for question, output in zip(questions, outputs, strict=True)]

    def preferences(self, rows: Sequence[Row], source: PreferencesConfig) -> list[Preference]:
        questions = self._ask(rows, source, [""] * len(rows))
        outputs = []
        for template, role in ((source.chosen, "chosen"), (source.rejected, "rejected")):
            outputs.append(self._outputs(rows, fill(rows, template, role)))
        return [
            Preference(question=question, better=better, worse=worse)
            for question, better, worse in zip(questions, *outputs, strict=True)
        ]

    def labelled_steps(self, rows: Sequence[Row], source: LabelledStepsConfig) -> list[LabelledOutput]:
        given_steps = read_steps(rows, source.steps, source.labels)
        questions = self._ask(rows, source, [""] * len(rows))
        encoded = self._each(
            rows, [steps for steps, _ in given_steps], lambda steps: encode_steps(self._tokenizer, steps, self._prompt)
        )
        return [
            LabelledOutput(
                question=question,
                output=Output(ids=ids, said=(True,) * len(ids), text="\n".join(steps)),
                labels=tuple(zip(ends, labels, strict=True)),
            )
            for question, (steps, labels), (ids, ends) in zip(questions, given_steps, encoded, strict=True)
        ]

    def _ask(self, rows: Sequence[Row], source: SourceConfig, golds: Sequence[str]) -> list[Question]:
        asked = fill_questions(rows, source.question)
        prompts = self._each(rows, asked, lambda question: render(self._tokenizer, question, self._prompt))
        lengths = [(row.where, f"{len(ids)} tokens") for row, ids in zip(rows, prompts, strict=True) if len(ids) > self._limit]
        reject(lengths, f"the prompt is longer than data.max_prompt_tokens: {self._limit}")
        return [
            Question(ordinal=0, id=row.where, text=text_of(question), gold=gold, prompt_ids=ids, columns=as_json(row.columns))
            for row, question, gold, ids in zip(rows, asked, golds, prompts, strict=True)
        ]

    def _outputs(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Output]:
        encoded = self._each(rows, texts, lambda text: encode_response(self._tokenizer, text, self._prompt, self._tools))
        return [Output(ids=ids, said=said, text=text) for (ids, said), text in zip(encoded, texts, strict=True)]

    def _each(self, rows: Sequence[Row], texts: Sequence[Any], encode: Callable[[Any], tuple]) -> list[tuple]:
        done, problems = [], []
        for row, text in zip(rows, texts, strict=True):
            try:
                done.append(encode(text))
            except ValueError as error:
                problems.append((row.where, str(error)))
        reject(problems, "cannot be put into tokens")
        return done
