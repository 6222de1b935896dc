"""Save, load and export are exact."""

import os
import pickle
import threading
import time

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.algorithms.table import resolve, resolve_reward_model
from learner.training import checkpoint
from learner.training.description import Reader
from reward.models import scalar_model as scalar_models
from tests.learner.builders import adamw, groups, grpo, random_batch
from tests.learner.slow import batch_of, labelled_batch
from tests.learner.stages import assert_equal, stage, weights

PLAN = adamw(learning_rate=3e-3, warmup_updates=2, schedule="cosine")


def trained(worker, seeds):
    return [worker.step(groups(random_batch(seed)), updates=2, temperature=0.9) for seed in seeds]


def test_three_steps_equal_one_step_a_checkpoint_and_two_steps(start, model_dir, tmp_path):
    unbroken = start(model_dir)
    unbroken.begin_stage(stage(grpo(), PLAN, 6))
    expected = trained(unbroken, [0, 1, 2])
    expected_weights = weights(unbroken)

    first = start(model_dir)
    first.begin_stage(stage(grpo(), PLAN, 6))
    trained(first, [0])
    first.save(tmp_path)
    first.writing(wait=True)
    second = start(model_dir)
    second.load(tmp_path, stage(grpo(), PLAN, 6))
    assert trained(second, [1, 2]) == expected[1:]
    assert_equal(weights(second), expected_weights)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("planted", [Runs(), BytesStorageMetadata()], ids=["code", "a value that is a pickle"])
def test_a_checkpoint_that_names_code_is_refused_and_nothing_is_run(start, model_dir, tmp_path, monkeypatch, planted):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), PLAN, 6))
    worker.save(tmp_path)
    worker.writing(wait=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    assert Reader(tmp_path).read_metadata().state_dict_metadata == metadata.state_dict_metadata
    metadata.state_dict_metadata["rng"] = planted
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseException, match="a checkpoint of tensors has no"):
        worker.load(tmp_path, stage(grpo(), PLAN, 6))
    assert not (tmp_path / "ran").exists()
    FileSystemReader(tmp_path).read_metadata()
    assert (tmp_path / "ran").exists() == isinstance(planted, Runs)


@pytest.fixture
def held_back(monkeypatch):
    """Files are written when the event is set, not before."""
    may, write = threading.Event(), checkpoint.write

    def late(*args, **options):
        assert may.wait(60)
        return write(*args, **options)

    monkeypatch.setattr(checkpoint, "write", late)
    return may


def test_what_is_trained_while_the_files_are_written_is_not_in_them(start, model_dir, tmp_path, held_back):
    worker, told = start(model_dir), []
    worker.begin_stage(PPO)
    steps(worker, [0])
    worker.save(tmp_path, told.append)
    reports, models = steps(worker, [1, 2])
    assert worker.writing(wait=False) and told == []
    held_back.set()
    assert not worker.writing(wait=True)
    assert [files.keys() for files in told] == [{"__0_0.distcp", ".metadata"}]
    assert {name: (tmp_path / name).stat().st_size for name in told[0]}.items() >= {
        "__0_0.distcp": told[0]["__0_0.distcp"]
    }.items()

    resumed = start(model_dir)
    resumed.load(tmp_path, PPO)
    found_reports, found_models = steps(resumed, [1, 2])
    assert found_reports == reports
    assert_equal(found_models, models)


def test_a_save_waits_for_the_one_before_and_what_failed_is_raised_once(start, model_dir, tmp_path):
    worker, order = start(model_dir), []
    worker.begin_stage(stage(grpo(), PLAN, 6))

    def slow(files):
        time.sleep(0.3)
        order.append("first")

    worker.save(tmp_path / "first", slow)
    worker.save(tmp_path / "second", lambda files: order.append("second"))
    assert order[0] == "first" and not worker.writing(wait=True) and order == ["first", "second"]
    (tmp_path / "file").touch()
    worker.save(tmp_path / "file" / "third")
    with pytest.raises(RuntimeError, match="rank 0: NotADirectoryError: .*third"):
        worker.writing(wait=True)
    assert not worker.writing(wait=True)


def test_a_checkpoint_before_the_first_update_is_exact(start, tied_dir, tmp_path):
    worker = start(tied_dir)
    worker.begin_stage(stage(grpo(), PLAN, 6))
    worker.save(tmp_path)
    worker.writing(wait=True)
    expected = trained(worker, [0])
    resumed = start(tied_dir)
    resumed.load(tmp_path, stage(grpo(), PLAN, 6))
    assert trained(resumed, [0]) == expected


def test_a_stage_without_reference_saves_none(start, model_dir, tmp_path):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve("sft", {}, {}), PLAN, 6))
    trained(worker, [0])
    worker.save(tmp_path)
    worker.writing(wait=True)
    expected = trained(worker, [1])
    resumed = start(model_dir)
    resumed.load(tmp_path, stage(resolve("sft", {}, {}), PLAN, 6))
    assert trained(resumed, [1]) == expected


def test_an_export_loads_in_transformers_with_the_same_logprobs(start, tied_dir, tmp_path):
    worker = start(tied_dir)
    worker.begin_stage(stage(grpo(), PLAN, 6))
    trained(worker, [0])
    worker.export(tmp_path / "out")
    ids = [5, 6, 7, 2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    whole = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found = torch.tensor(worker.logprobs([ids])[0])
    torch.testing.assert_close(found, whole[range(3), ids[1:]], rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("7").input_ids == [7]
    again = start(tmp_path / "out")
    torch.testing.assert_close(torch.tensor(again.logprobs([ids])[0]), found, rtol=0, atol=1e-6)


def test_an_export_has_the_type_that_was_asked_for_and_is_readable_as_the_umask_says(start, tied_dir, tmp_path):
    worker = start(tied_dir)
    before = os.umask(0o022)
    try:
        worker.export(tmp_path / "exact")
        worker.export(tmp_path / "half", "bfloat16")
    finally:
        os.umask(before)
    exact, half = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("exact", "half"))
    assert (exact.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert all(a.bfloat16().equal(b) for a, b in zip(exact.state_dict().values(), half.state_dict().values(), strict=True))
    files = [file for name in ("exact", "half") for file in (tmp_path / name).glob("*.safetensors")]
    assert len(files) == 2 and {file.stat().st_mode & 0o777 for file in files} == {0o644}
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


PPO = stage(resolve("ppo"), PLAN, 6, critic_optimizer=PLAN)
REWARD_MODEL = stage(resolve_reward_model("process_model"), PLAN, 6, members=2, seed=3)


def steps(worker, seeds):
    """Reports of a step on each batch, and everything a stage holds afterwards."""
    labelled = "reward_model" in worker._stage.trainers
    batches = [labelled_batch(seed) if labelled else groups(batch_of("token", seed=seed)) for seed in seeds]
    reports = [worker.step(batch, updates=2, temperature=1.0) for batch in batches]
    models = worker._models(worker._stage)
    return reports, {f"{name}.{key}": p.full_tensor().clone() for name, m in models.items() for key, p in m.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("specs", [[PPO], [REWARD_MODEL], [REWARD_MODEL, PPO], [REWARD_MODEL, PPO, REWARD_MODEL]])
def test_a_kill_in_any_stage_resumes_to_the_bit_with_every_model_that_was_held(start, model_dir, tmp_path, specs):
    worker = start(model_dir)
    for spec in specs:
        worker.begin_stage(spec)
        steps(worker, [0])
    worker.save(tmp_path)
    worker.writing(wait=True)
    reports, models = steps(worker, [1, 2])

    resumed = start(model_dir)
    resumed.load(tmp_path, specs[-1])
    found_reports, found_models = steps(resumed, [1, 2])
    assert found_reports == reports
    assert_equal(found_models, models)
    held = {name.split(".")[0] for name in models}
    assert ("reward_model" in held) == (REWARD_MODEL in specs) and ("critic" in held) == (specs[-1] is PPO)


def test_a_stage_before_the_first_reward_model_forgets_one_made_after_the_checkpoint(start, model_dir, tmp_path):
    worker = start(model_dir)
    worker.begin_stage(PPO)
    worker.save(tmp_path)
    worker.writing(wait=True)
    worker.begin_stage(REWARD_MODEL)
    worker.load(tmp_path, PPO)
    with pytest.raises(RuntimeError, match="no reward model"):
        worker.scalars(labelled_batch())


def test_an_exported_reward_model_scores_in_the_reward_stage_as_in_the_learner(start, model_dir, tmp_path):
    worker = start(model_dir, max_tokens_per_microbatch=64)
    worker.begin_stage(REWARD_MODEL)
    steps(worker, [0])
    worker.export_reward_model(tmp_path / "rm")
    groups = labelled_batch(1)
    batch = [x for group in groups for x in group.labelled]
    model = scalar_models.load([tmp_path / "rm"], torch.float32)
    positions = [[len(x.sample.prompt_ids) + t.position for t in x.targets] for x in batch]
    sequences = [x.sample.prompt_ids + x.sample.output_ids for x in batch]
    expected = scalar_models.read_scalars(model, sequences, positions, max_tokens=256)
    for found, rows in zip(worker.scalars(groups), expected, strict=True):
        assert [list(row) for row in found] == [pytest.approx(row, abs=1e-4) for row in rows]
