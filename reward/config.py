"""Configuration of the reward stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rollout.strict import AbsolutePath, Strict, python_function

AnswerFormat = Literal["auto", "hash", "boxed", "answer-is", "last-number"]


def member_directories(path: Path) -> list[Path]:
    """The directories of the models in `path`: itself, or one for each member of an ensemble."""
    members = sorted(path.glob("member-*"), key=lambda member: int(member.name.removeprefix("member-")))
    return [path] if (path / "config.json").exists() or not members else members


class RewardModelConfig(Strict):
    """A trained reward model, or several as an ensemble: where it comes from, how it scores, and on what."""

    path: tuple[AbsolutePath, ...] = ()
    """Directories of trained models with the policy's tokenizer, one or more as an ensemble; empty: an earlier stage of the
    run trains it."""
    members: int = Field(default=1, gt=0)
    """How many models a stage trains together, from different heads. With `path`, its directories decide."""
    combine: Literal["mean", "minimum", "mean_minus_spread"] = "mean"
    """How an ensemble's scores become one."""
    spread_weight: float = Field(default=1.0, ge=0.0)
    """k of mean_minus_spread: mean - k * standard deviation over the members (population)."""
    step_boundary: str = Field(default="newline", min_length=1)
    """Where a step of an output ends, for process models: newline, blank_line, or the text that ends a step."""
    process_reward: Literal["probability", "logit"] = "probability"
    """A step's reward: the probability that it is right, or its logit. An outcome model's reward is the logit."""
    replay_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of a later stage's training examples that comes from earlier stages of reward-model training (the paper's)."""
    replay_groups: int = Field(default=4096, gt=0)
    """Groups that the history holds."""
    max_tokens_per_batch: int = Field(default=16384, gt=0)
    """Tokens of one forward pass, padding included. A single longer sequence goes alone."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of its weights and arithmetic."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where the worker has one."""
    gpus_per_worker: float = Field(default=0.0, ge=0.0)
    """GPUs (or a share of one) for each reward actor."""
    cores_per_worker: int | None = Field(default=None, gt=0)
    """CPU threads of a reward actor; by default what the process was given."""

    @property
    def count(self) -> int:
        """Models of the ensemble."""
        return sum(len(member_directories(path)) for path in self.path) or self.members

    @model_validator(mode="after")
    def _agree(self):
        if self.path and self.members != 1:
            raise ValueError(f"members: found {self.members}, but the directories of `path` decide; leave members out")
        here = all(path.exists() for path in self.path)
        if self.combine != "mean" and here and self.count == 1:
            raise ValueError(
                f"combine: found {self.combine} for a single model, expected an ensemble: several members or paths"
            )
        if self.spread_weight != 1.0 and self.combine != "mean_minus_spread":
            raise ValueError(f"spread_weight: given, but combine is {self.combine}, expected mean_minus_spread")
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise ValueError("device is cuda but gpus_per_worker is 0, expected a GPU or a share of one for each worker")
        if self.device == "cpu" and self.gpus_per_worker > 0:
            raise ValueError(f"device is cpu but gpus_per_worker is {self.gpus_per_worker:g}, expected 0")
        return self


Mark = Annotated[str, Field(min_length=1)]


class Reading(Strict):
    """How the rule reads an output for its final answer, besides `answer_format`. The defaults know the usual models."""

    reasoning_tags: tuple[tuple[Mark, Mark], ...] = (
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<thoughts>", "</thoughts>"),
        ("<reason>", "</reason>"),
        ("<reasoning>", "</reasoning>"),
        ("<analysis>", "</analysis>"),
        ("<reflection>", "</reflection>"),
        ("<scratchpad>", "</scratchpad>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis", "<|channel|>final"),
    )
    """What opens and what closes reasoning, in any case. Only what follows the last closing tag is read, and reasoning that is
    not closed has no answer; empty: everything is read."""
    end_marks: tuple[Mark, ...] = (
        *(
            "<eoa>",
            "<eoe>",
            "<eos>",
            "</s>",
            "<s>",
            "[EOS]",
            "[END]",
            "[DONE]",
            "[/INST]",
            "<END>",
            "<end_of_turn>",
            "</solution>",
        ),
    )
    """What ends an output or a part of it: the line ends there. Besides these every `<|name|>`."""
    headings: tuple[Mark, ...] = (
        *("answer", "ans", "答案", "答：", "答:", "【解答】", "故选", "应选", "正确选项", "答え", "正解", "정답", "답"),
        *(
            "réponse",
            "respuesta",
            "resposta",
            "risposta",
            "antwort",
            "ответ",
            "odpowiedź",
            "cevap",
            "jawaban",
            "đáp án",
            "उत्तर",
            "الإجابة",
        ),
    )
    """What stands before an answer, in any case and number: `Answer: 4`, `the final answer is 4`, `【答案】4`, or alone on a
    line. One in brackets is known in these only."""
    compare_units: bool = False
    """Whether the unit must be that of the reference, where that has one; else 3 cm, 3 m and 3 are all 3."""


READING = Reading()


class RewardConfig(Strict):
    """The rule reward, correctness of the final answer plus well-formedness, and the reward model where one is used."""

    workers: int = Field(default=1, gt=0)
    """Reward actors."""
    answer_format: AnswerFormat = "hash"
    """Where the final answer stands: `#### N`, `\\boxed{N}`, the last number, or the first of these that is found."""
    reading: Reading = READING
    """How the rule reads an output, besides `answer_format`."""
    correct: float = 1.0
    """Weight of the component `correct`."""
    format: float = 0.0
    """Weight of the component `format`: the output ends by itself and states a final answer in the asked form."""
    judges: int = Field(default=1, gt=0)
    """Processes of a reward actor that judge answers; each can be killed without harm to the others."""
    judge_seconds: float = Field(default=10.0, gt=0.0)
    """A judge that takes longer over one output is killed, and the output has no score."""
    judge_memory_gb: float = Field(default=2.0, gt=0.0)
    """Address space of a judge."""
    function: str | None = None
    """A reward function of yours, as `my_rewards.py:score`; what it is given and returns: reward/judging/user_function.py."""
    weights: dict[str, float] = Field(default={}, validate_default=False)
    """Weight of each component that the function returns, all of them; by default 1 each."""
    network: bool = False
    """Whether the function may open sockets, as one that asks a model elsewhere does."""
    environment: tuple[str, ...] = ()
    """Environment variables that the function is given, such as OPENAI_API_KEY, as they are set where its reward actor runs:
    beside these it has only those that Python needs."""
    max_unscored_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Stop the run when more of the last 64 outputs (or of a larger step) have no score, for whatever reason: rejected,
    unscorable, or their judge was killed or failed. It stops in any case when no output of a step has one."""
    flip_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """For studies of noisy rewards: the chance that the rule's reward takes a right answer for wrong or a wrong one for right.
    The component `correct` stays the true one, `observed` is what the reward used."""

    @field_validator("function")
    @classmethod
    def _file_is_there(cls, value: str | None) -> str | None:
        return None if value is None else python_function(value)

    @model_validator(mode="after")
    def _function_replaces_the_rule(self):
        for name in ("weights", "network", "environment") if self.function is None else ():
            if getattr(self, name):
                raise ValueError(f"{name}: given, but there is no reward.function that it is for")
        for name in ("correct", "format", "flip_share") if self.function else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: given, but reward.function is the reward; expected one of the two")
        return self

    model: RewardModelConfig | None = None
    """For stages whose reward is an outcome or a process model; None stands for the defaults."""
