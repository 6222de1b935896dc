"""What each rank of the two-rank tests does, in a file that their processes can import."""

import math
import multiprocessing
import re
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

from learner.algorithms.cells import Need
from learner.algorithms.table import TABLE, resolve, resolve_reward_model
from learner.models.loading import read
from learner.models.policy import blank_policy
from learner.models.weights import ModelWeights
from reward.models.scalar_model import build
from tests.learner.builders import adamw, examples, free_address, groups, grpo, new_worker, random_batch, scored
from tests.learner.slow import HEAD_SEED, batch_of, labelled_batch
from tests.learner.stages import fill, gradients, stage, weights

DEADLINE_S = 120


def run_ranks(target, directory: Path, out: Path, world_size: int = 2, **config) -> list:
    """`target(worker, out)` on every rank, each in a fresh process, with these settings; what the ranks returned."""
    multiprocessing.set_forkserver_preload([__name__])  # imported once, not by every process
    args = (target, directory, out, world_size, free_address(), config)
    context = mp.start_processes(_rank, args, nprocs=world_size, join=False, start_method="forkserver")
    end = time.monotonic() + DEADLINE_S
    try:
        while not context.join(timeout=max(0.1, end - time.monotonic())):
            if time.monotonic() > end:
                raise TimeoutError(f"the ranks of {target.__name__} did not finish in {DEADLINE_S} s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, target, directory: Path, out: Path, world_size: int, rendezvous: str, config: dict) -> None:
    torch.set_num_threads(1)
    config = {"max_tokens_per_microbatch": 48, "logprob_chunk_tokens": 8} | config
    worker = new_worker(directory, rank=rank, world_size=world_size, rendezvous=rendezvous, **config)
    torch.save(target(worker, out), out / f"rank{rank}.pt")
    worker.close()


def script(worker, out: Path) -> dict:
    """Training below and above the clip threshold, a checkpoint and its continuation, an export, ranks without rows, skips.

    In one long run, since starting processes is what costs. With this eps an update of AdamW is smooth in the gradient, so that
    rounding stays rounding.
    """
    result = {"describe": worker.describe()}
    worker.begin_stage(stage(grpo(), smooth(1e9), 8))
    result["reports"] = [train(worker, 0)]
    result["gradients"] = gradients(worker)
    norm = result["reports"][0].metrics["grad_norm"]
    for limit in (1.001, 0.5):
        worker.begin_stage(stage(grpo(), smooth(limit * norm), 8))
        result["reports"].append(train(worker, 0))
    worker.save(out / "checkpoint")
    result["reports"].append(train(worker, 2))
    result["weights"] = weights(worker)
    result["resumed"] = resume(worker, out, norm)
    result["logprobs"] = worker.logprobs([[5, 6, 7], [9, 2], [3] * 9])
    worker.export(out / "export")
    return result | {"stages": stages(worker, out)} | uneven(worker)


def smooth(max_grad_norm: float):
    return adamw(learning_rate=0.1, eps=0.1, max_grad_norm=max_grad_norm)


def train(worker, seed: int):
    return worker.step(groups(random_batch(seed, groups=4)), updates=1, temperature=0.9)


def resume(worker, out: Path, norm: float) -> dict:
    """Continue from the checkpoint that `script` wrote."""
    worker.writing(wait=True)
    worker.load(out / "checkpoint", stage(grpo(), smooth(0.5 * norm), 8))
    return {"report": train(worker, 2), "weights": weights(worker)}


def resume_there(worker, out: Path) -> dict:
    """The same on other ranks; the norm of the first gradient is left in a file."""
    return resume(worker, out, float((out / "norm").read_text()))


def ppo_stage():
    row = resolve("ppo", {}, {"old": "learner"})
    return stage(row, smooth(1e9), 8, critic_optimizer=smooth(1e9))


def stages(worker, out: Path) -> dict:
    """A reward model of two members, then PPO with all four models, its checkpoint and its continuation."""
    row = resolve_reward_model("process_model")
    worker.begin_stage(stage(row, smooth(1e9), 8, members=2, seed=1))
    reports = [worker.step(labelled_batch(), updates=2, temperature=1.0)]
    worker.begin_stage(ppo_stage())
    reports.append(worker.step(groups(batch_of("token")), updates=2, temperature=1.0))
    saved: dict = {}
    worker.save(out / "stages", saved.update)
    reports.append(worker.step(groups(batch_of("token", seed=1)), updates=2, temperature=1.0))
    worker.writing(wait=True)
    result = {"reports": reports, "saved": saved, "scalars": worker.scalars(labelled_batch()), **held(worker)}
    worker.export_reward_model(out / "reward_model")
    return result | {"continued": continue_stages(worker, out)}


def continue_stages(worker, out: Path) -> dict:
    """Continue from the checkpoint that `stages` wrote."""
    worker.load(out / "stages", ppo_stage())
    return {"report": worker.step(groups(batch_of("token", seed=1)), updates=2, temperature=1.0), **held(worker)}


def held(worker) -> dict:
    critic = {name: x.clone() for name, x in ModelWeights(worker._stage.models["critic"], torch.float32)}
    return {"policy": weights(worker), "reward_model": weights(worker, "reward_model"), "critic": critic}


def uneven(worker) -> dict:
    """Batches that leave a rank without rows: one with a single token, one with none, and a row that is not finite."""
    worker.begin_stage(stage(resolve("sft", {}, {}), adamw(), 8))
    token = worker.step(groups([scored("a", 0, [5], [6])]), updates=1, temperature=1.0)
    nothing = worker.step(groups([scored("a", 0, [5], [6], mask=[False])]), updates=1, temperature=1.0)
    worker.begin_stage(stage(grpo(kl=0.0), adamw(), 8))
    before = weights(worker)
    bad = [scored("b", i, [5], [6], reward=float(i), logprobs=[x]) for i, x in enumerate((math.nan, -1.0))]
    skipped = worker.step(groups(bad), updates=2, temperature=1.0)
    same = all(torch.equal(before[name], x) for name, x in weights(worker).items())
    return {"token": token, "nothing": nothing, "skipped": skipped, "unchanged_by_skips": same}


def adapter_stages(worker, out: Path) -> dict:
    """An adapter trained in two stages, a checkpoint and its continuation, a critic from the merged weights, both exports."""
    for seed in (0, 1):
        worker.begin_stage(stage(grpo(), smooth(1e9), 8))
        reports = [train(worker, seed), train(worker, 2)]
    worker.save(out / "checkpoint")
    reports += [train(worker, 3)]
    worker.writing(wait=True)
    result = {"gradients": gradients(worker), "weights": weights(worker), "adapter": adapter(worker), "reports": reports}
    result["continued"] = continue_adapter(worker, out)
    worker.begin_stage(ppo_stage())
    result["critic"] = {name: x.clone() for name, x in ModelWeights(worker._stage.models["critic"], torch.float32)}
    for name in ("merged", "adapter"):
        worker.export(out / name, adapter=name == "adapter")
    return result


def continue_adapter(worker, out: Path) -> dict:
    """Continue from the checkpoint that `adapter_stages` wrote."""
    worker.load(out / "checkpoint", stage(grpo(), smooth(1e9), 8))
    return {"report": train(worker, 3), "weights": weights(worker)}


def adapter(worker) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in ModelWeights(worker._policy.causal_lm, torch.float32, adapter_scale=1.0)}


def load_all(worker, out: Path) -> dict:
    """All weights and buffers of every model in out/models, as ranks read them."""
    found = {}
    for path in (out / "models").iterdir():
        model = worker._sharded(blank_policy(path, torch.float32, 8)).causal_lm
        read(model, path)
        whole = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
        found[path.name] = (whole, dict(model.named_buffers()))
    return found


def peak(worker, out: Path) -> float:
    """Most bytes that this process has held; `getrusage` counts its parent's too."""
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


MASKED = {"cell": "masked", "unit": "sequence", "low": 0.2, "high": 5.0}
ROWS = TABLE | {"masked": resolve("grpo", {}, {"old": "learner", "behaviour": MASKED})}
OPTIMIZER = {"learning_rate": 0.0, "max_grad_norm": 1e9}
"""Gradients as they are, and models that stay for the next row."""
MEMBERS = 3


def all_gradients(worker, out: Path, reference_dir: Path) -> dict:
    """The first gradient of every row and model, and of reward models with either objective, of one and of several members."""
    found = {}
    reference = AutoModelForCausalLM.from_pretrained(reference_dir, dtype=torch.float32)
    for name, row in ROWS.items():
        beside = {"critic_optimizer": adamw(**OPTIMIZER)} if Need.CRITIC in row.needs else {}
        beside |= {"teacher": reference_dir} if Need.TEACHER in row.needs else {}
        worker.begin_stage(stage(row, adamw(**OPTIMIZER), 1, **beside))
        held = worker._stage.models
        if "reference" in held:
            fill(held["reference"].causal_lm, dict(reference.named_parameters()))
        if "critic" in held:
            head = build(worker._model_dir, "process", members=1, seed=HEAD_SEED, dtype=torch.float32).heads[0]
            fill(held["critic"].heads[0], dict(head.named_parameters()))
        batch = batch_of(row.weighting.unit, process=row.reward == "process_model")
        found[name, "report"] = worker.step(groups(batch), updates=1, temperature=1.0)
        found |= {(name, model): gradients(worker, model) for model in worker._stage.trainers}
    return found | reward_model_gradients(worker)


def reward_model_gradients(worker) -> dict:
    found = {}
    for members in (1, MEMBERS):
        for name, batch in REWARD_MODEL_BATCHES.items():
            worker._reward_model = None
            row = resolve_reward_model(name)
            worker.begin_stage(stage(row, adamw(**OPTIMIZER), 1, members=members, seed=HEAD_SEED))
            found[name, members, "report"] = worker.step(batch, updates=1, temperature=1.0)
            found[name, members, "scalars"] = worker.scalars(batch)
            found[name, members] = gradients(worker, "reward_model")
    return found


REWARD_MODEL_BATCHES = {"outcome_model": examples(batch_of("pair", seed=3)), "process_model": labelled_batch()}
