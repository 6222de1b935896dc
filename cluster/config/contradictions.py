"""The rules that hold between the settings of a run: what excludes each other, and what nothing would read."""

from pydantic import BaseModel

from cluster.config import stages
from cluster.config.explain import Loc
from cluster.config.settings import RolePlacement, RunSettings
from learner.algorithms.table import Supervision
from learner.config import LearnerConfig
from reward.config import RewardModelConfig


def contradictions(config: RunSettings) -> list[tuple[Loc, str]]:
    """Pairs of settings that exclude each other, each with the reason."""
    data, names = config.data, [stage.name for stage in config.stages]
    out: list[tuple[Loc, str]] = []
    if bool(config.stages) != bool(config.learner.ranks):
        found = f"found {len(config.stages)} stages and {config.learner.ranks} learner.ranks"
        out.append((("stages",), f"{found}; expected at least one of each (an evaluation has neither)"))
    for i, stage in enumerate(config.stages):
        out += [(("stages", i, *key), why) for key, why in stages.contradictions(stage, data, config.reward)]
        if stage.name in names[:i]:
            out.append(
                (("stages", i, "name"), f"'{stage.name}' is stage {names.index(stage.name)} too; expected different names")
            )
    for name in ("demonstrations", "preferences", "labelled_steps"):
        if getattr(data, name) and all(stage.given != name for stage in config.stages):
            out.append((("data", name), "given, but no stage trains on them"))
    if config.mirror is not None:
        _, given, rest = config.mirror.partition("://")
        user, at, _ = rest.partition("/")[0].rpartition("@")
        if not given:
            out.append((("mirror",), "found no protocol; expected one, as in s3://bucket/run"))
        if at and ":" in user or "?" in rest:
            out.append((("mirror",), "found a password, and config.yaml would keep it; expected it where fsspec looks for it"))
    if config.project != RunSettings.model_fields["project"].default and not config.trackers:
        out.append((("project",), "given, but there are no trackers"))
    out += _reward_model_contradictions(config) + _unread_rewards(config) + _unread_without_training(config)
    out += _adapter_contradictions(config)
    sharing, engines = config.rollout, config.rollout.workers * config.rollout.tensor_parallel_size
    if (sharing.sleep or sharing.transport == "ipc") and config.learner.ranks not in (0, engines):
        found = f"{config.learner.ranks}, and the engines that share GPUs with the ranks have {engines}"
        out.append((("learner", "ranks"), f"found {found}; expected as many ranks"))
    if (sharing.sleep or sharing.transport == "ipc") and config.cluster.placement.rollout != RolePlacement():
        why = "given, but engines share the GPUs of the learner's ranks; expected cluster.placement.learner"
        out.append((("cluster", "placement", "rollout"), why))
    if sharing.keep_kv and not any(stage.in_flight for stage in config.stages):
        out.append((("rollout", "keep_kv"), "given, but no stage is in_flight: weights change between outputs only"))
    for i, stage in enumerate(config.stages):
        if stage.max_staleness and sharing.sleep:
            why = "given, but with rollout.sleep engines rest while the learner trains; expected 0"
            out.append((("stages", i, "max_staleness"), why))
    if data.prompt.system is not None and data.prompt.template == "plain":
        out.append((("data", "prompt", "system"), "given, but template: plain has no system message; expected template: chat"))
    if config.model.init:
        sources = {"questions": data.questions, "demonstrations": data.demonstrations, "evaluation": data.evaluation}
        for name, source in sources.items():
            if source and source.task is None:
                why = f"model.init {config.model.init} reads built-in tasks only; expected `task`, or a model.path instead"
                out.append((("data", name), why))
    return out


def unread_here(config: RunSettings, *, gpus: bool | None = None, address: str | None = None) -> list[str]:
    """Settings that a machine or cluster would not read: `gpus` says whether it has any (None: not known), `address` is that
    of a cluster which runs already, empty for one of this machine's own (None: not known)."""
    rollout, local = config.rollout, {"metrics_port": config.cluster.metrics_port, "dashboard": config.cluster.dashboard}
    cpu = {"kv_cache_gb": rollout.kv_cache_gb, "cores_per_worker": rollout.cores_per_worker}
    gpu = {"gpu_memory_utilization": rollout.gpu_memory_utilization}
    given = [(f"rollout.{name}", "it is for CPU engines, and there are GPUs") for name, x in cpu.items() if gpus and x]
    given += [(f"rollout.{name}", "it is for GPUs, and there are none") for name, x in gpu.items() if gpus is False and x]
    given += [("learner.offload", "it is for GPUs, and there are none")] * (gpus is False and config.learner.offload)
    given += [
        (f"cluster.{name}", f"the cluster at RAY_ADDRESS {address} runs already")
        for name, x in local.items()
        if address and x is not None
    ]
    placement = config.cluster.placement
    cluster = {f"placement.{role}": getattr(placement, role) != RolePlacement() for role in ("learner", "rollout", "reward")}
    cluster |= {"grows": config.cluster.grows is not None}
    why = "it is for the nodes of a cluster, and there is no RAY_ADDRESS"
    given += [(f"cluster.{name}", why) for name, x in cluster.items() if address == "" and x]
    out = [f"{key}: given, but {why}; expected to be left out" for key, why in given]
    if gpus is False and rollout.sleep:
        out.append("rollout.sleep: given, but there are no GPUs to share; expected to be left out")
    if gpus is False and rollout.transport in ("nccl", "ipc"):
        out.append(f"rollout.transport: {rollout.transport} is between GPUs, and there are none; expected auto or shm")
    return out


def _reward_model_contradictions(config: RunSettings) -> list[tuple[Loc, str]]:
    """A reward model must be there before it judges, and a run has one kind of it."""
    out: list[tuple[Loc, str]] = []
    there, kind = config.reward.model is not None and bool(config.reward.model.path), supervision(config)
    for i, stage in enumerate(config.stages):
        asked = stage.resolved().supervision
        if asked not in (None, kind):
            why = f"has a reward model for {asked} supervision, an earlier stage one for {kind}; expected one kind"
            out.append((("stages", i, "algorithm"), why))
        there = there or not stage.trains_policy
        if asked and not there:
            expected = "expected reward.model.path, an earlier stage that trains one, or reward: rule"
            why = f"the reward is '{stage.reward_source}'; {expected}"
            out.append((("stages", i, "algorithm"), why))
    if config.reward.model is not None and kind is None:
        out.append((("reward", "model"), "given, but no stage trains a reward model or is rewarded by one"))
    if kind is not None and config.reward.model is not None and _given(config.reward.model, "process_reward"):
        asked = [stage.reward_source for stage in config.stages]
        if kind == "outcome" or "process_model" not in asked:
            why = {"outcome": "the reward model is for outcome supervision"}.get(
                kind, "no stage is rewarded by a process model"
            )
            out.append((("reward", "model", "process_reward"), f"given, but {why}"))
    boundary = config.reward.model.step_boundary if config.reward.model else "newline"
    if config.data.labelled_steps and boundary != "newline":
        why = f"found '{boundary}', but the steps of data.labelled_steps end with a newline; expected newline"
        out.append((("reward", "model", "step_boundary"), why))
    return out


def _adapter_contradictions(config: RunSettings) -> list[tuple[Loc, str]]:
    """An adapter is of a policy in training, and goes to the engines through shared memory."""
    lora, out = config.learner.lora, []
    if lora is None:
        return out
    if config.stages and not any(stage.trains_policy for stage in config.stages):
        out.append((("learner", "lora"), "given, but no stage trains the policy"))
    if lora.send == "adapter" and (config.rollout.sleep or config.rollout.transport in ("nccl", "ipc")):
        how = "rollout.sleep asks for ipc" if config.rollout.sleep else f"rollout.transport is {config.rollout.transport}"
        why = f"found adapter, which goes through shared memory, and {how}; expected merged, or transport: shm"
        out.append((("learner", "lora", "send"), why))
    return out


def _unread_rewards(config: RunSettings) -> list[tuple[Loc, str]]:
    """Settings of the reward that no stage reads."""
    reward, model = config.reward, config.reward.model or RewardModelConfig()
    by_rule = [s for s in config.stages if not s.given and s.reward_source == "rule"]
    # Single outputs are labelled with their correctness alone, steps by a rule of their own.
    alone = config.rollout.environment is None
    of_reward = [s for s in by_rule if (s.trains_policy or s.pairs) and alone]
    of_flips = [s for s in by_rule if (s.trains_policy and alone) or s.resolved().supervision == "outcome"]
    trained = [s for s in config.stages if not s.trains_policy]
    read = {
        ("correct",): bool(of_reward),
        ("format",): bool(of_reward),
        ("flip_share",): bool(of_flips),
        ("model", "replay_share"): len(trained) + len(model.path) > 1 and bool(trained),
        ("model", "replay_groups"): len(trained) + len(model.path) > 1 and bool(trained),
        ("model", "step_boundary"): supervision(config) == "process",
    }
    told = "no stage is rewarded by the rule" + ("" if alone else " (rollout.environment is the reward)")
    why = dict.fromkeys(("correct", "format"), told) | {
        "flip_share": "no stage is rewarded by the rule or learns from its rewards",
        "step_boundary": "the reward model does not judge steps",
    }
    out: list[tuple[Loc, str]] = []
    for key, used in read.items():
        if not used and _given(reward if len(key) == 1 else model, key[-1]):
            reason = why.get(key[-1], "no reward model is trained on after another stage or run")
            out.append((("reward", *key), f"given, but {reason}"))
    return out


def _unread_without_training(config: RunSettings) -> list[tuple[Loc, str]]:
    """Settings that runs do not read which sample no outputs to train on, or which train nothing."""
    out: list[tuple[Loc, str]] = []
    if all(stage.given for stage in config.stages) and _given(config.rollout, "temperature"):
        why = "given, but no stage samples outputs to train on; those of evaluations are sampled at evaluation.temperature"
        out.append((("rollout", "temperature"), why))
    if not config.stages:
        held_out = [(("data", name), config.data) for name in ("hold_out", "evaluation")]
        trained = [(("learner", name), config.learner) for name in LearnerConfig.model_fields if name != "ranks"]
        paced = [(("evaluation", "every"), config.evaluation), (("rollout", "transport"), config.rollout)]
        paced += [((name,), config) for name in ("checkpoint_every", "keep_checkpoints", "mirror", "trackers")]
        out += [(loc, "given, but nothing is trained") for loc, holder in held_out + trained + paced if _given(holder, loc[-1])]
    return out


def _given(section: BaseModel, name: str) -> bool:
    """Whether a setting is not its default's: a resolved configuration that is read back gives every key."""
    return getattr(section, name) != type(section).model_fields[name].default


def supervision(config: RunSettings) -> Supervision | None:
    """What the run's reward model judges, outcome or process; None for a run without one."""
    return next((kind for stage in config.stages if (kind := stage.resolved().supervision)), None)
