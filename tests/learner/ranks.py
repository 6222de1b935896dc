"""What each rank of the two-rank tests does, in a file that spawned processes can import."""

import math
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp

from learner.algorithms import resolve
from tests.learner.builders import adamw, free_address, grpo, new_worker, random_batch, scored

DEADLINE_S = 120


def run_ranks(target, directory: Path, out: Path, world_size: int = 2) -> list:
    """`target(worker, out)` on every rank, each in a fresh process; what the ranks returned."""
    rendezvous = free_address()
    context = mp.spawn(_rank, (target, directory, out, world_size, rendezvous), nprocs=world_size, join=False)
    end = time.monotonic() + DEADLINE_S
    try:
        while not context.join(timeout=max(0.1, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(f"the ranks of {target.__name__} did not finish in {DEADLINE_S} s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, target, directory: Path, out: Path, world_size: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    worker = new_worker(
        directory, rank=rank, world_size=world_size, rendezvous=rendezvous, max_tokens_per_microbatch=48, logprob_chunk_tokens=8
    )
    torch.save(target(worker, out), out / f"rank{rank}.pt")
    worker.close()


def script(worker, out: Path) -> dict:
    """Training below and above the clip threshold, a checkpoint and its continuation, an export, ranks without rows, skips.

    In one long run, since starting processes is what costs. With this eps an update of AdamW is smooth in the gradient, so that
    rounding stays rounding.
    """
    result = {"describe": worker.describe()}
    worker.begin_stage(grpo(), smooth(1e9), 8)
    result["reports"] = [train(worker, 0)]
    parameters = worker._policy.causal_lm.named_parameters()
    result["moments"] = {name: worker._trainer.optimizer.state[p]["exp_avg"].full_tensor() for name, p in parameters}
    norm = result["reports"][0].metrics["grad_norm"]
    for limit in (1.001, 0.5):
        worker.begin_stage(grpo(), smooth(limit * norm), 8)
        result["reports"].append(train(worker, 0))
    worker.save(out / "checkpoint")
    result["reports"].append(train(worker, 2))
    result["weights"] = weights(worker)
    result["resumed"] = resume(worker, out, norm)
    result["logprobs"] = worker.logprobs([[5, 6, 7], [9, 2], [3] * 9])
    worker.export(out / "export")
    return result | uneven(worker)


def smooth(max_grad_norm: float):
    return adamw(learning_rate=0.1, eps=0.1, max_grad_norm=max_grad_norm)


def train(worker, seed: int):
    return worker.step(random_batch(seed, groups=4), updates=1, temperature=0.9)


def weights(worker) -> dict:
    return {name: tensor.clone() for name, tensor in worker.source("float32")}


def resume(worker, out: Path, norm: float) -> dict:
    """Continue from the checkpoint that `script` wrote."""
    worker.load(out / "checkpoint", grpo(), smooth(0.5 * norm), 8)
    return {"report": train(worker, 2), "weights": weights(worker)}


def uneven(worker) -> dict:
    """Batches that leave a rank without rows: one with a single token, one with none, and a row that is not finite."""
    worker.begin_stage(resolve("sft", {}, {}), adamw(), 8)
    token = worker.step([scored("a", 0, [5], [6])], updates=1, temperature=1.0)
    nothing = worker.step([scored("a", 0, [5], [6], mask=[False])], updates=1, temperature=1.0)
    worker.begin_stage(grpo(kl=0.0), adamw(), 8)
    before = weights(worker)
    bad = [scored("b", i, [5], [6], reward=float(i), logprobs=[x]) for i, x in enumerate((math.nan, -1.0))]
    skipped = worker.step(bad, updates=2, temperature=1.0)
    same = all(torch.equal(before[name], x) for name, x in weights(worker).items())
    return {"token": token, "nothing": nothing, "skipped": skipped, "unchanged_by_skips": same}
