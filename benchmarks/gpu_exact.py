"""The learner against float64, a part of `gpu.py`: what the tests check on the CPU, where it runs here.

The references are the tests' own: textbook losses, one output at a time, plain forward passes.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from gpu import Line
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.algorithms.table import TABLE
from learner.training.reward_model_stage import bootstrap, outputs, pairs
from learner.worker import LearnerWorker
from reward.models import scalar_model as scalar_models
from tests.learner.builders import adamw, groups, grpo, new_worker, plain_logprobs, random_batch, write_model
from tests.learner.ranks import MEMBERS, OPTIMIZER, REWARD_MODEL_BATCHES, all_gradients
from tests.learner.slow import HEAD_SEED, batch_of, label_gradients, policy_gradients, ranking_gradients
from tests.learner.stages import gradients, stage, weights

MODEL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "initializer_range": 0.06}
BOUNDS = {"float32": {"logprobs": 1e-4, "gradients": 1e-4}, "bfloat16": {"logprobs": 0.1, "gradients": 0.1}}
"""Log-probabilities in nats; gradients relative to the largest entry of each tensor."""


def exact(**shape: int) -> Iterator[Line]:
    """A small model's log-probabilities, gradients of every row, sharding and checkpoint, against float64 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        directories = [write_model(Path(folder) / str(seed), seed=seed, **(MODEL | shape)) for seed in (0, 1)]
        for dtype, bounds in BOUNDS.items():
            worker = new_worker(directories[0], compute_dtype=dtype, max_tokens_per_microbatch=256)
            yield _sharded(worker)
            yield _compared("logprobs", dtype, bounds, {"policy": _logprob_error(worker, directories[0])})
            errors = _row_errors(worker, directories, Path(folder)) if dtype == "float32" else _sft_errors(worker, directories)
            yield _compared("gradients", dtype, bounds, errors)
            worker.close()
        yield _continued(directories[0], Path(folder) / "checkpoint")


def _sharded(worker: LearnerWorker) -> Line:
    found = worker.describe()
    shards, device = sorted(set(found["placements"].values())), "cuda" if torch.cuda.is_available() else "cpu"
    text = (
        f"{found['parameters']} parameters as {', '.join(shards)} on {found['device']}, computing in {found['compute_dtype']}"
    )
    passed = shards == ["(Shard(dim=0),)"] and found["device"] == device
    return Line(name="FSDP2", passed=passed, text=text)


def _compared(what: str, dtype: str, bounds: Mapping[str, float], errors: dict[str, float]) -> Line:
    worst = max(errors, key=errors.get)
    text = f"{dtype} within {errors[worst]:.2g} of float64 ({worst}, of {len(errors)}; at most {bounds[what]:g})"
    return Line(name=what, passed=errors[worst] <= bounds[what], text=text, figures={"dtype": dtype, "errors": errors})


def _logprob_error(worker: LearnerWorker, directory: Path) -> float:
    """The largest |difference| in nats."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    samples = [item.sample for item in random_batch(groups=6)]
    found = worker.logprobs([s.prompt_ids + s.output_ids for s in samples])
    with torch.no_grad():
        exact = [plain_logprobs(model, s, 1.0) for s in samples]
    rows = [torch.tensor(row, dtype=torch.float64)[-len(s.output_ids) :] for row, s in zip(found, samples, strict=True)]
    return (torch.cat(rows) - torch.cat(exact)).abs().max().item()


def _row_errors(worker: LearnerWorker, directories: Sequence[Path], folder: Path) -> dict[str, float]:
    """Of every row's policy and critic, and of reward models of one and of several members."""
    found, errors = all_gradients(worker, folder, directories[1]), {}
    for name, row in TABLE.items():
        batch = batch_of(row.weighting.unit, process=row.reward == "process_model")
        for model, expected in zip(("policy", "critic"), policy_gradients(name, *directories, batch), strict=True):
            if (name, model) in found:
                errors[f"{name} {model}"] = relative(found[name, model], expected)
    kinds = {"outcome_model": ("outcome", pairs, ranking_gradients), "process_model": ("process", outputs, label_gradients)}
    for name, (kind, examples, slow) in kinds.items():
        for members in (1, MEMBERS):
            model = scalar_models.build(directories[0], kind, members=members, seed=HEAD_SEED, dtype=torch.float64)
            batch = REWARD_MODEL_BATCHES[name]
            expected = slow(model, batch, bootstrap(examples(batch), members, HEAD_SEED))
            errors[f"{name} x {members}"] = relative(found[name, members], expected)
    return errors


def _sft_errors(worker: LearnerWorker, directories: Sequence[Path]) -> dict[str, float]:
    """The row without a clipped ratio: at the edge of a clip, rounding decides whether a token counts."""
    worker.begin_stage(stage(TABLE["sft"], adamw(**OPTIMIZER), 1))
    batch = batch_of(TABLE["sft"].weighting.unit)
    worker.step(groups(batch), updates=1, temperature=1.0)
    return {"sft policy": relative(gradients(worker), policy_gradients("sft", *directories, batch)[0])}


def relative(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest |difference| of any tensor, relative to the tensor's largest entry. Infinite where the tensors differ."""
    if found.keys() != expected.keys():
        return math.inf
    scales = {name: x.abs().max().item() or 1.0 for name, x in expected.items()}
    return max((found[name].cpu().double() - x).abs().max().item() / scales[name] for name, x in expected.items())


def _continued(directory: Path, folder: Path) -> Line:
    """A checkpoint gives back the same bits, and what follows it is what would have followed; atomic sums may round apart."""
    plan = stage(grpo(), adamw(learning_rate=1e-3), 4)
    first = new_worker(directory)
    first.begin_stage(plan)
    first.step(groups(random_batch(0)), updates=1, temperature=1.0)
    first.save(folder)
    first.writing(wait=True)
    saved, report = weights(first), first.step(groups(random_batch(1)), updates=1, temperature=1.0)
    first.close()
    second = new_worker(directory)
    second.load(folder, plan)
    same = all(torch.equal(saved[name], x) for name, x in weights(second).items())
    again = second.step(groups(random_batch(1)), updates=1, temperature=1.0)
    second.close()
    apart = abs(again.metrics["grad_norm"] - report.metrics["grad_norm"]) / report.metrics["grad_norm"]
    text = f"loaded weights are {'the same bits' if same else 'others'}; the next gradient's norm differs by {apart:.1g} of it"
    return Line(name="checkpoint", passed=same and apart < 1e-4, text=text, figures={"same": same, "apart": apart})
