"""How near the learner comes to what this machine can multiply, what sharing prompts saves, and how exact the output head is.

    python benchmarks/learner_speed.py [--parts samples shared long head] [--compile] [--out learner.json]

Updates of a randomly initialised model of SmolLM2-135M's shape, bfloat16 with float32 masters, packed as a run packs them; the
peak is that of a product of bfloat16 matrices in the same run, between the updates. Useful operations are counted as in
`gpu_speed`, what is computed again among none of them. PASS: rows of 1,024 tokens at 50% of the peak, samples of 24 + 64
tokens at two thirds of that; 64 outputs with a shared prompt in a third of the time, gradients the same to 1e-5; and
log-probabilities of every size no further from float64's than float32's accumulation explains.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from gpu import STATUS, Line
from gpu_shapes import config_of
from gpu_speed import matmul_peak, operations, to_train, trainer_of
from torch import Tensor
from torch.distributed.tensor import DTensor

from cluster.fleet.spawner import JEMALLOC, LARGE
from learner.algorithms.table import TABLE
from learner.batch.packing import plain_output
from learner.config import LearnerConfig
from learner.models.logprobs import selected_logprobs
from learner.models.policy import DTYPES
from learner.models.sharding import init_distributed
from learner.training.objectives import PolicyObjective
from learner.training.trainer import Trainer
from learner.types import PackedBatch, PolicyBatch
from rollout.first_calls import pick_kernels
from tests.learner.builders import free_address

SHAPE, CONFIG = "smollm2-135m", LearnerConfig()
TIMES, CPU_SIZE = 3, 2048
BINS = (1.0, 0.9, 0.5, 0.1, 1e-3, 1e-6, 0.0)
"""Of probabilities, from the upper limit down."""
OBJECTIVE = PolicyObjective(weighting=TABLE["sft"].weighting, temperature=1.0, compare_behaviour=False)


def trainer(dtype: str, *, compiled: bool = False) -> Trainer:
    return trainer_of(SHAPE, init_distributed(0, 1, free_address(), 60), DTYPES[dtype], compiled=compiled)


def batch(groups: int, outputs: int, prompt: int, output: int, *, shared: bool = True) -> PackedBatch[PolicyBatch]:
    """Random tokens with advantages of 1. Unshared: the same tokens, each output with a prompt to itself."""
    draw, made = torch.Generator().manual_seed(0), []
    for group in range(groups):
        ids = torch.randint(3, config_of(SHAPE).vocab_size, (prompt + outputs * output,), generator=draw).tolist()
        for i in range(outputs):
            part = tuple(ids[prompt + i * output : prompt + (i + 1) * output])
            made.append(plain_output(group if shared else len(made), tuple(ids[:prompt]), part))
    return to_train(made, CONFIG.max_tokens_per_microbatch)


def seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The median of each, called in turn after a call that is not timed."""
    taken: list[list[float]] = [[] for _ in calls]
    for round in range(TIMES + 1):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times += [time.perf_counter() - began] * (round > 0)
    return [statistics.median(times) for times in taken]


def shares_of_peak(parts: Sequence[str], compiled: bool) -> Iterator[Line]:
    """Shares of the peak."""
    model, shares = trainer("bfloat16", compiled=compiled), {}
    device, peaks = torch.device("cpu"), []
    for name, made in {"rows": batch(8, 1, 128, 896), "samples": batch(16, 8, 24, 64)}.items():
        if name not in parts:
            continue
        update, _ = seconds(
            [lambda made=made: model.step(made, OBJECTIVE), lambda: peaks.append(matmul_peak(device, CPU_SIZE))]
        )
        peak = max(peaks)
        shares[name] = operations(model.model, made) / update / peak
        tokens = made.trained_tokens / update
        text = f"{update:.2f} s an update, {tokens:.0f} trained tokens/s, {shares[name]:.1%} of {peak / 1e9:.0f} GFLOP/s"
        wanted = 0.5 if name == "rows" else 2 / 3 * shares["rows"]
        figures = {"seconds": update, "trained_tokens_per_second": tokens, "share_of_peak": shares[name], "peak": peak}
        yield Line(name=name, passed=shares[name] >= wanted, text=f"{text} (at least {wanted:.1%})", figures=figures)
    dist.destroy_process_group()


def gradients(model: Trainer, made: PackedBatch[PolicyBatch]) -> list[Tensor]:
    model.optimizer.zero_grad(set_to_none=True)
    model._backward(made, OBJECTIVE)
    found = [p.grad.full_tensor().clone() for p in model.model.parameters() if isinstance(p.grad, DTensor)]
    model.optimizer.zero_grad(set_to_none=True)
    return found


def shared_prompt(prompt: int, output: int) -> Line:
    """64 outputs of one question with their prompt shared, and each with its own."""
    model = trainer("float32")
    both = [batch(1, 64, prompt, output), batch(1, 64, prompt, output, shared=False)]
    first, second = (gradients(model, made) for made in both)
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second, strict=True))
    del first, second
    took = seconds([lambda made=made: model.step(made, OBJECTIVE) for made in both])
    dist.destroy_process_group()
    times = took[1] / took[0]
    text = f"{64 / took[0]:.2f} samples/s, {times:.2f} times the {64 / took[1]:.2f} unshared; gradients differ by {apart:.1e}"
    figures = {"samples_per_second": 64 / took[0], "times": times, "gradients": apart}
    return Line(name=f"shared {prompt} + {output}", passed=times >= 3 and apart <= 1e-5, text=text, figures=figures)


def head() -> Iterator[Line]:
    """Errors of log-probabilities in nats against float64 on the same bfloat16 inputs, by probability."""
    draw, vocabulary, width = torch.Generator().manual_seed(0), 49152, 576
    hidden = (torch.randn(4096, width, generator=draw) * torch.linspace(0.1, 8, 4096)[:, None]).bfloat16()
    weight = (torch.randn(vocabulary, width, generator=draw) / width**0.5).bfloat16()
    exact, half, targets = ([] for _ in range(3))
    for part in hidden.split(256):
        logits = part.double() @ weight.double().T
        ranks = logits.sort(-1, descending=True).indices
        target = ranks.gather(-1, torch.randint(0, 12, (len(part), 1), generator=draw).exp2().long() - 1)
        exact.append(logits.log_softmax(-1).gather(-1, target)[:, 0])
        half.append((part @ weight.T).float().log_softmax(-1).gather(-1, target)[:, 0])
        targets.append(target[:, 0])
    found = selected_logprobs(hidden, weight, torch.cat(targets), temperature=1.0, chunk=CONFIG.logprob_chunk_tokens)[0]
    wide = selected_logprobs(hidden.float(), weight.float(), torch.cat(targets), temperature=1.0, chunk=512)[0]
    right, rounded = torch.cat(exact), torch.cat(half)
    for upper, lower in zip(BINS, BINS[1:], strict=False):
        here = (right.exp() <= upper) & (right.exp() > lower)
        values = {"ours": found, "float32": wide, "bfloat16 logits": rounded}
        errors = {name: (x[here] - right[here]).abs().max().item() for name, x in values.items()}
        text = f"{here.sum()} tokens, at most {', '.join(f'{name} {x:.1e}' for name, x in errors.items())} off"
        yield Line(name=f"p {lower:g} to {upper:g}", passed=errors["ours"] <= 1e-4, text=text, figures=errors)


PARTS: dict[str, Callable[[bool], Iterator[Line]]] = {
    "rows": lambda compiled: shares_of_peak(("rows",), compiled),
    "samples": lambda compiled: shares_of_peak(("rows", "samples"), compiled),
    "shared": lambda _: iter([shared_prompt(512, 128)]),
    "long": lambda _: iter([shared_prompt(4096, 512)]),
    "head": lambda _: head(),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["samples", "shared", "head"])
    parser.add_argument("--compile", action="store_true", help="with learner.compile")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    args = parser.parse_args()
    if JEMALLOC.exists() and not torch.cuda.is_available() and "LD_PRELOAD" not in os.environ:  # as a rank on CPUs has it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | LARGE)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pick_kernels()
    lines = []
    for part in args.parts:
        for line in PARTS[part](args.compile):
            lines.append(line)
            print(f"{line.name:<20} {STATUS[line.passed]}  {line.text}", flush=True)
    if args.out:
        args.out.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n", encoding="utf-8")
    good = all(line.passed for line in lines)
    print("PASS" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
