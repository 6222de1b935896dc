"""`cohort plan` against what others published, and against a run on this machine.

    python benchmarks/plan.py                      # published figures
    python benchmarks/plan.py --run runs/planned   # also the quickstart's, begun there if it is not finished

A published figure may be missed by 35%, a step's seconds of the run by 20%, and its memory by 10%. A miss has its explanation
beside it. Left out of what is published: mixtures of experts, which the learner refuses, and steps without the outputs' mean
length. The run's hardware is measured before and after it, and its memory while it goes on; of its steps the quickest quarter
counts, as others may be slowed by what else the machine does. On a busy machine the comparison says nothing.
"""

import json
import math
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import psutil
import typer
from transformers import LlamaConfig

from cluster.config.run_config import load
from cluster.fleet.demand import Size, demands, memory
from cluster.planning import cost
from cluster.planning.cost import Learning, Load
from cluster.planning.fit import Cluster, Layout
from cluster.planning.hardware import GPUS, this_machine
from cluster.planning.memory import on_cpu
from cluster.planning.plan import SHARED, Planner
from cluster.planning.shapes import Shape, shape_of, shape_of_recipe
from cluster.planning.workload import Lengths, Workload, lengths_of_run, stage_of, workload_of
from runs import COHORT, RECIPES, steps

PUBLISHED, SECONDS, MEMORY = 0.35, 0.20, 0.10
"""How far off a prediction may be."""
ROLES = {"rollout": ("ray::RolloutActor", "VLLM::EngineCore"), "learner": ("ray::LearnerActor", "ray::train")}
"""What the processes of a role call themselves."""
SHORT = ("stages.sft.steps=20", "stages.grpo.steps=16", "evaluation.questions=10")
"""Of the quickstart, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison, in seconds or bytes."""

    name: str
    predicted: float
    measured: float
    most: float
    source: str
    why: str = ""
    """Of a miss."""

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def verdict(self) -> str:
        """Nothing for what is only shown."""
        return "" if self.most == math.inf else "PASS" if abs(self.off) <= self.most else "MISS" if self.why else "FAIL"

    def show(self) -> None:
        text = f"{self.name:<58}{self.predicted:>9.3g}{self.measured:>9.3g}{self.off:>+8.0%}  {self.verdict:<6}{self.source}"
        print(text, flush=True)
        if self.verdict == "MISS":
            print(f"    {self.why}")


def shown(lines: Iterable[Line]) -> Iterator[Line]:
    for line in lines:
        line.show()
        yield line


def llama(hidden: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int, tied: bool) -> Shape:
    """Of heads of 128; Qwen3 norms queries and keys besides, which is nothing here."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=128,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    return shape_of(config)


QWEN3_600M = llama(1024, 3072, 28, (16, 8), 151936, True)
QWEN3_4B = llama(2560, 9728, 36, (32, 8), 151936, True)
QWEN3_32B = llama(5120, 25600, 64, (64, 8), 151936, False)
LLAMA_8B = llama(4096, 14336, 32, (32, 8), 128256, False)


PRIME, NEMO = "prime-rl, benchmarks/results/BENCHMARKS.md", "NeMo-RL, docs/about/performance-summary.md"
ROWS = (
    ("Qwen3-4B, 8 H100, a row of 65,536 each", QWEN3_4B, 65536, 8, 18.10, ""),
    ("Qwen3-0.6B, 1 H100, a row of 65,536", QWEN3_600M, 65536, 1, 6.46, ""),
    ("Qwen3-4B, 8 H100, a row of 16,384 each", QWEN3_4B, 16384, 8, 5.04,
     "their SFT step, the same arithmetic, takes 2.64 s, their RL step with LoRA 2.69: the rest is not arithmetic"),
)  # fmt: skip
"""Updates of one row on each rank, layers computed again in backward: shape, tokens, ranks, seconds."""
STEPS = (
    ("Llama-3.1-8B, 16 H100", LLAMA_8B, Layout(engines=16, tensor_parallel=1, ranks=16, shared=True), 1562, 1060, 97.7),
    ("Llama-3.1-8B, 8 + 8 H100, a step ahead", LLAMA_8B, Layout(engines=8, tensor_parallel=1, ranks=8), 2161, 1129, 74.6),
    ("Qwen3-32B, 32 H100", QWEN3_32B, Layout(engines=8, tensor_parallel=4, ranks=32, shared=True), 540, 3206, 393),
    ("Qwen3-32B, 32 + 32 H100, a step ahead", QWEN3_32B, Layout(engines=8, tensor_parallel=4, ranks=32), 494, 3207, 215),
)  # fmt: skip
"""Of GRPO, 64 questions x 32 outputs of at most 4,096 tokens: shape, layout, tokens a second and GPU, mean output, seconds."""
SENT = (
    ("Qwen3-0.6B, 1 + 1 H100", QWEN3_600M, "H100", True, 0.18, "TRL PR 5892", ""),
    ("Qwen3-32B, 16 + 16 H200", QWEN3_32B, "H200", False, 2.3, "TRL PR 7131", ""),
    ("Qwen3-4B, H100, between nodes (0.21 to 0.34)", QWEN3_4B, "H100", False, 0.275, "NeMo-RL, nccl_reshard",
     "there every rank sends its shard by its own card; here rank 0 gathers them and one card broadcasts"),
)  # fmt: skip
"""Weight updates: shape, GPU, whether in one node, seconds."""


class Theirs(Planner):
    """NeMo-RL's training: causal attention that skips what is masked, two passes for log-probabilities, one of updates."""

    def training(self, ranks: int) -> float:
        lengths, samples = self.work.lengths, self.work.samples / ranks
        each = lengths.prompt + lengths.output
        load = Load(positions=samples * each, pairs=samples * each**2 / 2, trained=samples * lengths.output, micro_batches=1)
        return cost.train(self.shape, load, Learning(reads=2, updates=1), self.cluster.device, (ranks, self.cluster.per_node))


def published() -> Iterator[Line]:
    for name, shape, tokens, ranks, seconds, why in ROWS:
        row = Load(positions=tokens, pairs=tokens**2 / 2, trained=tokens, micro_batches=1)
        predicted = cost.train(shape, row, Learning(reads=0, updates=1, recompute=True), GPUS["H100"], (ranks, 8))
        yield Line(name=f"update: {name}", predicted=predicted, measured=seconds, most=PUBLISHED, source=PRIME, why=why)
    for name, shape, layout, rate, output, seconds in STEPS:
        lengths = Lengths(prompt=rate * layout.devices * seconds / 2048 - output, output=output, limit=4096)
        work = Workload(lengths=lengths, questions=64, group=32, reads=2, compiled=True, shared_utilization=0.6)
        planner = Theirs(shape, work, Cluster(device=GPUS["H100"], per_node=8, nodes=layout.devices // 8))
        predicted = planner.estimate(layout, SHARED if layout.shared else "ahead").seconds
        yield Line(name=f"step: {name}", predicted=predicted, measured=seconds, most=PUBLISHED, source=NEMO)
    for name, shape, gpu, near, seconds, source, why in SENT:
        predicted = cost.sync(2 * shape.parameters, GPUS[gpu], within_node=near)
        yield Line(name=f"weights: {name}", predicted=predicted, measured=seconds, most=PUBLISHED, source=source, why=why)


def measured(run: Path, recipe: str, overrides: list[str]) -> Iterator[Line]:
    """A run on this machine, its hardware measured before and after where it is begun here."""
    before, here = this_machine(), run / "memory.json"
    if not (run / "summary.json").exists():
        watched(run, recipe, overrides)
    after = this_machine()
    rates = {name: max(getattr(before, name), getattr(after, name)) for name in ("narrow", "wide", "bandwidth")}
    config = load(run / "config.yaml")
    stage, shape = stage_of(config), shape_of_recipe(config)
    work = workload_of(config, stage, lengths_of_run(run, stage.name, config.rollout.max_new_tokens))
    layout = Layout(engines=config.rollout.workers, tensor_parallel=1, ranks=config.learner.ranks)
    one = Planner(shape, work, Cluster(device=replace(before, **rates), per_node=1)).estimate(layout)
    rows = [row for row in steps(run) if row["stage"] == stage.name]
    rows = rows[len(rows) // 3 :]  # the first ones load kernels
    for name, seconds in {**one.phases, "step": one.seconds}.items():
        found = statistics.quantiles((row[f"seconds_{name}"] for row in rows), n=4)[0]
        most = SECONDS if name == "step" else math.inf
        yield Line(name=f"{run.name}: {name}, s", predicted=seconds, measured=found, most=most, source=str(run))
    if not here.exists():
        print(f"{run}: its memory was not watched")
        return
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    needed = demands(config, Size(parameters=shape.parameters), on_cpu(shape, config.learner, longest))
    peaks = json.loads(here.read_text())
    for demand in needed[:2]:
        yield Line(name=f"{run.name}: memory of a {demand.role}, GB", predicted=demand.bytes / 1e9,
                   measured=peaks[demand.role] / demand.count / 1e9, most=math.inf, source=str(here))  # fmt: skip
    yield Line(name=f"{run.name}: memory, GB", predicted=memory(needed)[0] / 1e9, measured=peaks["all"] / 1e9, most=MEMORY,
               source=str(here))  # fmt: skip


def watched(run: Path, recipe: str, overrides: list[str]) -> None:
    """The run, and in its directory the most memory that its roles had."""
    command = [str(COHORT), "train", str(RECIPES / f"{recipe}.yaml"), f"output={run}", *overrides]
    process, peaks = subprocess.Popen(command, stdout=subprocess.DEVNULL), dict.fromkeys((*ROLES, "all"), 0.0)
    while process.poll() is None:
        held = memory_of(process.pid)
        peaks = {role: max(peak, held[role]) for role, peak in peaks.items()}
        time.sleep(2)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    (run / "memory.json").write_text(json.dumps(peaks))


def memory_of(pid: int) -> dict[str, float]:
    """Proportional set sizes of a process and all that it started, in bytes, by role and together."""
    found = dict.fromkeys((*ROLES, "all"), 0.0)
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for one in family:
        try:
            name, size = " ".join(one.cmdline()), one.memory_full_info().pss
        except psutil.Error:
            continue
        found["all"] += size
        for role, names in ROLES.items():
            found[role] += size * name.startswith(names)
    return found


def main(
    run: Annotated[Path | None, typer.Option(help="A run's directory; the recipe is run there if it is not finished.")] = None,
    recipe: Annotated[str, typer.Option(help="Of deploy/recipes.")] = "quickstart",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    print(f"{'':<58}{'planned':>9}{'found':>9}{'off':>8}")
    lines = list(shown(published()))
    within = sum(abs(line.off) <= line.most for line in lines)
    print(f"{within} of {len(lines)} published figures within {PUBLISHED:.0%}: {'PASS' if within >= 5 else 'FAIL'}")
    if run is not None:
        lines += shown(measured(run, recipe, overrides or list(SHORT)))
    raise typer.Exit(any(line.verdict == "FAIL" for line in lines))


if __name__ == "__main__":
    typer.run(main)
