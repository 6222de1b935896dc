"""The reward worker: the rule and a reward model as the plain class that becomes a remote actor."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reward.config import RewardConfig, RewardModelConfig, member_directories
from reward.judging.judges import function_of, function_pool, rule_pool
from reward.models.tokenizer import check_tokenizer
from reward.scorer import FunctionScorer, ModelScorer, RuleScorer
from reward.types import By, ScoredGroup
from rollout.types import Group

if TYPE_CHECKING:
    from reward.labels.steps import StepFinder
    from reward.models.scalar_model import ScalarModel
    from rollout.weights.staging import Staging


class RewardWorker:
    """Scores groups of samples, by the rule or by a reward model. The same group gets the same scores at the same version
    on any worker.

    Weights of a model come in two phases, as an engine's do: `update_weights` stages and verifies while the old version
    serves, `finish_weight_update` loads.
    """

    def __init__(self, config: RewardConfig, log: Path | None = None):
        """`log`: the file for what a reward function prints."""
        self._config = config
        self._judges = rule_pool(config)
        self._function = function_pool(config, log) if config.function is not None else None
        self._rule: RuleScorer | FunctionScorer = RuleScorer(config, self._judges)
        if self._function is not None:
            self._rule = FunctionScorer(config, function_of(self._function), self._judges)
        self._model: ScalarModel | None = None
        self._finder: StepFinder | None = None
        self._staging: Staging | None = None
        self._version: int | None = None
        self._digest = ""

    def load_model(self, model_dir: Path, kind: Literal["outcome", "process"]) -> None:
        """The model of `reward.model.path` as version 0, or else one shaped like the policy in `model_dir`, without weights.

        Raises ValueError for a model of another kind, or one whose tokenizer is not the policy's.
        """
        # Torch and transformers are loaded here: a worker that judges by the rule alone does without them.
        import torch
        from transformers import AutoTokenizer

        from reward.labels.steps import StepFinder
        from reward.models import scalar_model as models
        from rollout.first_calls import pick_kernels

        config = self._config.model or RewardModelConfig()
        if config.cores_per_worker is not None:
            torch.set_num_threads(config.cores_per_worker)
        pick_kernels()
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        if config.path:
            model, version = models.load(config.path, dtype), 0
            for directory in (directory for path in config.path for directory in member_directories(path)):
                check_tokenizer(directory, model_dir)
            if model.kind != kind:
                raise ValueError(f"reward.model.path: found a model of kind {model.kind}, expected {kind}")
        else:
            model, version = models.build(model_dir, kind, members=config.members, seed=0, dtype=dtype), None
        cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        self._model = model.to("cuda" if cuda else "cpu")
        self._finder = StepFinder(AutoTokenizer.from_pretrained(model_dir), config.step_boundary)
        self._staging, self._version = None, version
        self._digest = "" if version is None else _digest(model)

    def score(self, groups: Sequence[Group], by: By = "rule") -> list[ScoredGroup]:
        """Every sample scored, in order; by rule is by the user's function where there is one.

        Raises RuntimeError for a model that has no weights.
        """
        if by == "rule":
            return self._rule.score(groups)
        if self._model is None or self._finder is None or self._version is None:
            raise RuntimeError("the reward model has no weights: it has no reward.model.path and no update reached it")
        return ModelScorer(self._config, self._model, self._finder, self._version, self._judges).score(groups)

    def init_transfer(self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        """What every update will carry. Raises ValueError unless it is every parameter of the model."""
        from rollout.weights.staging import Staging

        sent = dict(zip(names, map(tuple, shapes), strict=True))
        held = {name: tuple(p.shape) for name, p in self._loaded().named_parameters(remove_duplicate=False)}
        for name in sorted(sent.keys() | held.keys()):
            if sent.get(name) != held.get(name):
                raise ValueError(f"tensor {name!r}: the sender has {sent.get(name)}, the reward model {held.get(name)}")
        self._staging = Staging({name: (dtype, sent[name]) for name, dtype in zip(names, dtypes, strict=True)})

    def start_weight_update(self) -> None:
        """Drop what an earlier update staged. Raises RuntimeError without a model."""
        self._loaded()
        if self._staging is not None:
            self._staging.clear()

    def update_weights(self, manifest: Mapping[str, Any]) -> str:
        """Stage and verify; the digest of the bytes as received. Raises TransferError, and the old version serves on."""
        from rollout.weights.transfer import Manifest

        staging = self._receiver()
        staging.receive(Manifest.from_dict(manifest))
        return staging.digest

    def finish_weight_update(self, version: int) -> None:
        """Load what is staged; scores carry `version` from here on. Raises RuntimeError when nothing is staged."""
        import torch

        staging, parameters = self._receiver(), dict(self._loaded().named_parameters(remove_duplicate=False))
        if not staging.tensors:
            raise RuntimeError("nothing is staged: finish_weight_update needs a successful update_weights before it")
        with torch.no_grad():
            for name, tensor in staging.tensors.items():
                parameters[name].copy_(tensor)
        self._version, self._digest = version, staging.digest
        staging.clear()

    def close(self) -> None:
        """End the judges."""
        for pool in (self._judges, self._function):
            if pool is not None:
                pool.close()

    def describe(self) -> dict[str, str | int | None]:
        """Who this is: for logs and the run's summary. `version` and `digest` are those of the weights that serve."""
        return {
            "role": "reward",
            "scorer": type(self._rule).__name__ if self._model is None else ModelScorer.__name__,
            "reward_model": None if self._model is None else self._model.kind,
            "answer_format": self._config.answer_format,
            "version": self._version,
            "digest": self._digest,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def _loaded(self) -> "ScalarModel":
        if self._model is None:
            raise RuntimeError("no reward model: call load_model first")
        return self._model

    def _receiver(self) -> "Staging":
        if self._staging is None:
            raise RuntimeError("no transfer: call init_transfer first")
        return self._staging


def _digest(model: "ScalarModel") -> str:
    """Of the weights as they serve, made as a manifest's is."""
    from rollout.weights.transfer import as_bytes, digest_of, dtype_name, hash_of

    parameters = model.named_parameters(remove_duplicate=False)
    return digest_of((name, dtype_name(p.dtype), p.shape, hash_of(as_bytes(p))) for name, p in parameters)
