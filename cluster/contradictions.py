"""The rules that hold between the settings of a run: what excludes each other, and what nothing would read."""

from typing import TYPE_CHECKING

from cluster import stages
from cluster.explain import Loc
from cluster.stages import StageConfig
from learner.denoised import DenoisedGroupRelative
from reward.config import RewardModelConfig

if TYPE_CHECKING:
    from cluster.config import RunConfig


def contradictions(config: "RunConfig") -> list[tuple[Loc, str]]:
    """Pairs of settings that exclude each other, each with the reason."""
    data, names = config.data, [stage.name for stage in config.stages]
    out: list[tuple[Loc, str]] = []
    if bool(config.stages) != bool(config.learner.ranks):
        found = f"found {len(config.stages)} stages and {config.learner.ranks} learner.ranks"
        out.append((("stages",), f"{found}; expected at least one of each (an evaluation has neither)"))
    for i, stage in enumerate(config.stages):
        for key, why in stages.contradictions(stage, data):
            out.append((("stages", i, key), why))
        if stage.name in names[:i]:
            out.append(
                (("stages", i, "name"), f"'{stage.name}' is stage {names.index(stage.name)} too; expected different names")
            )
    for name in ("demonstrations", "preferences", "labelled_steps"):
        if getattr(data, name) and all(stage.given != name for stage in config.stages):
            out.append((("data", name), "given, but no stage trains on them"))
    out += _reward_model_contradictions(config) + _unread_rewards(config)
    binary = config.reward.correct == 1 and config.reward.format == 0
    for i, stage in enumerate(config.stages):
        if stage.trains_policy and isinstance(stage.resolved().credit, DenoisedGroupRelative) and not binary:
            why = "estimates flips of 0/1 rewards; expected reward.correct: 1 and reward.format: 0"
            out.append((("stages", i, "credit"), why))
    if data.prompt.system is not None and data.prompt.template == "plain":
        out.append((("data", "prompt", "system"), "given, but template: plain has no system message; expected template: chat"))
    if config.model.init:
        sources = {"questions": data.questions, "demonstrations": data.demonstrations, "evaluation": data.evaluation}
        for name, source in sources.items():
            if source and source.task is None:
                why = f"model.init {config.model.init} reads built-in tasks only; expected `task`, or a model.path instead"
                out.append((("data", name), why))
    return out


def _reward_model_contradictions(config: "RunConfig") -> list[tuple[Loc, str]]:
    """A reward model must be there before it judges, and a run has one kind of it."""
    out: list[tuple[Loc, str]] = []
    there, kind = config.reward.model is not None and bool(config.reward.model.path), supervision(config)
    for i, stage in enumerate(config.stages):
        asked = _supervision(stage)
        if asked not in (None, kind):
            why = f"has a reward model for {asked} supervision, an earlier stage one for {kind}; expected one kind"
            out.append((("stages", i, "algorithm"), why))
        there = there or not stage.trains_policy
        if asked and not there:
            expected = "expected reward.model.path, an earlier stage that trains one, or reward: rule"
            why = f"the reward is '{stage.resolved().reward}'; {expected}"
            out.append((("stages", i, "algorithm"), why))
    if config.reward.model is not None and kind is None:
        out.append((("reward", "model"), "given, but no stage trains a reward model or is rewarded by one"))
    if kind == "outcome" and config.reward.model is not None and config.reward.model.process_reward != "probability":
        out.append((("reward", "model", "process_reward"), "given, but the reward model is for outcome supervision"))
    boundary = config.reward.model.step_boundary if config.reward.model else "newline"
    if config.data.labelled_steps and boundary != "newline":
        why = f"found '{boundary}', but the steps of data.labelled_steps end with a newline; expected newline"
        out.append((("reward", "model", "step_boundary"), why))
    return out


def _unread_rewards(config: "RunConfig") -> list[tuple[Loc, str]]:
    """Settings of the reward that no stage reads."""
    reward, model = config.reward, config.reward.model or RewardModelConfig()
    by_rule = [s for s in config.stages if not s.given and s.reward_source == "rule"]
    # Single outputs are labelled with their correctness alone, steps by a rule of their own.
    of_reward = [s for s in by_rule if s.trains_policy or s.pairs]
    of_flips = [s for s in by_rule if s.trains_policy or s.resolved().supervision == "outcome"]
    trained = [s for s in config.stages if not s.trains_policy]
    read = {
        ("correct",): bool(of_reward), ("format",): bool(of_reward), ("flip_share",): bool(of_flips),
        ("model", "replay_share"): len(trained) + len(model.path) > 1 and bool(trained),
        ("model", "replay_groups"): len(trained) + len(model.path) > 1 and bool(trained),
        ("model", "step_boundary"): supervision(config) == "process",
    }  # fmt: skip
    why = {
        "correct": "no stage is rewarded by the rule", "format": "no stage is rewarded by the rule",
        "flip_share": "no stage is rewarded by the rule or learns from its rewards",
        "step_boundary": "the reward model does not judge steps",
    }  # fmt: skip
    out: list[tuple[Loc, str]] = []
    for key, used in read.items():
        holder = reward if len(key) == 1 else model
        if not used and getattr(holder, key[-1]) != type(holder).model_fields[key[-1]].default:
            reason = why.get(key[-1], "no reward model is trained on after another stage or run")
            out.append((("reward", *key), f"given, but {reason}"))
    return out


SUPERVISION = {"outcome_model": "outcome", "process_model": "process"}
"""What the model behind a reward judges."""


def _supervision(stage: StageConfig) -> str | None:
    row = stage.resolved()
    return SUPERVISION.get(row.reward) if stage.trains_policy else row.supervision


def supervision(config: "RunConfig") -> str | None:
    """What the run's reward model judges, outcome or process; None for a run without one."""
    return next((kind for stage in config.stages if (kind := _supervision(stage))), None)
