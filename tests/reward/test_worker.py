import os
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from reward.config import RewardConfig, RewardModelConfig
from reward.labels.steps import StepFinder
from reward.models.scalar_model import ScalarModel, build, save
from reward.scorer import RuleScorer
from reward.worker import RewardWorker
from rollout.tasks.arithmetic import make_small_llama
from rollout.weights.transfer import TransferError, release, write_buckets
from tests.reward.builders import flat, judge_here, random_ids, sample, sampled_groups

pytestmark = pytest.mark.slow

CLASSES = {"outcome": AutoModelForSequenceClassification, "process": AutoModelForTokenClassification}
SAMPLES = [sample("#### 7", index=i, output_ids=ids) for i, ids in enumerate(random_ids(0, 6))]


def test_a_worker_scores_as_its_scorer_does_and_says_who_it_is():
    config = RewardConfig(answer_format="boxed", format=0.5)
    samples = [sample(r"\boxed{7}"), sample("#### 7", index=1)]
    worker = RewardWorker(config)
    scored = worker.score(sampled_groups(samples))
    assert scored == RuleScorer(config, judge_here).score(sampled_groups(samples))
    assert [x.verdict.reward for x in flat(scored)] == [1.5, 0.0]
    described = worker.describe()
    assert (described["role"], described["scorer"], described["pid"]) == ("reward", "RuleScorer", os.getpid())
    assert (described["answer_format"], described["version"], described["reward_model"]) == ("boxed", None, None)


def trained(model_dir, kind="outcome", members=1, seed=1) -> ScalarModel:
    return build(model_dir, kind, members=members, seed=seed, dtype=torch.float32)


def worker_for(model_dir, kind="outcome", **options) -> RewardWorker:
    worker = RewardWorker(RewardConfig(model=RewardModelConfig(process_reward="logit", device="cpu", **options)))
    worker.load_model(model_dir, kind)
    return worker


def meet(worker, source) -> None:
    rows = [(m.name, str(m.dtype).removeprefix("torch."), m.shape) for m in source.metadata()]
    worker.init_transfer(*zip(*rows, strict=True))


def events(scored):
    return [[(event.position, event.value) for event in item.events] for item in scored]


def by_model(worker, samples=SAMPLES):
    return flat(worker.score(sampled_groups(samples), by="model"))


def reference(directory, kind, model_dir):
    """The exported transformers class, one output at a time."""
    model, out = CLASSES[kind].from_pretrained(directory), []
    finder = StepFinder(AutoTokenizer.from_pretrained(model_dir), "newline")
    for one in SAMPLES:
        with torch.no_grad():
            logits = model(torch.tensor([one.prompt_ids + one.output_ids])).logits[0]
        last = len(one.output_ids) - 1
        ends = finder.ends(one.output_ids, one.sampled_mask) if kind == "process" else (last,)
        at = {end: logits[len(one.prompt_ids) + end].item() for end in ends} if kind == "process" else {last: logits.item()}
        out.append(list(at.items()))
    return out


def assert_close(found, expected):
    assert [[position for position, _ in row] for row in found] == [[position for position, _ in row] for row in expected]
    assert [v for row in found for _, v in row] == pytest.approx([v for row in expected for _, v in row], abs=1e-5)


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_scores_at_a_version_are_those_of_the_exported_model_and_carry_the_version(
    tiny_model_dir, tmp_path, weight_source, kind
):
    worker, digests, before = worker_for(tiny_model_dir, kind), {}, []
    for version in (1, 2):
        model = trained(tiny_model_dir, kind, seed=version)
        save(model, tmp_path / str(version), tiny_model_dir)
        expected = reference(tmp_path / str(version), kind, tiny_model_dir)
        source = weight_source(dict(model.named_parameters()))
        meet(worker, source)
        worker.start_weight_update()
        manifest = write_buckets(source, prefix="reward-test", version=version)
        try:
            assert worker.update_weights(manifest.to_dict()) == manifest.digest
        finally:
            release(manifest)
        if version == 2:
            assert {x.verdict.reward_version for x in by_model(worker)} == {1}, "the old version serves on"
            assert_close(events(by_model(worker)), before)
        worker.finish_weight_update(version)
        scored = by_model(worker)
        before = events(scored)
        assert_close(before, expected)
        assert {x.verdict.reward_version for x in scored} == {version}
        described = worker.describe()
        assert (described["version"], described["digest"], described["reward_model"]) == (version, manifest.digest, kind)
        digests[version] = manifest.digest
        assert worker.score(sampled_groups(SAMPLES)) == RuleScorer(RewardConfig(), judge_here).score(sampled_groups(SAMPLES))
    assert digests[1] != digests[2]


def test_models_from_directories_serve_as_version_0(tiny_model_dir, tmp_path):
    for seed in (1, 2):
        save(trained(tiny_model_dir, seed=seed), tmp_path / str(seed), tiny_model_dir)
    save(trained(tiny_model_dir, members=2), tmp_path / "both", tiny_model_dir)
    worker = worker_for(tiny_model_dir, path=(tmp_path / "1", tmp_path / "2"))
    rows = zip(*(reference(tmp_path / str(seed), "outcome", tiny_model_dir) for seed in (1, 2)), strict=True)
    assert_close(events(by_model(worker)), [[(a[0][0], (a[0][1] + b[0][1]) / 2)] for a, b in rows])
    described = worker.describe()
    assert (described["version"], described["scorer"]) == (0, "ModelScorer") and len(described["digest"]) == 64
    assert worker_for(tiny_model_dir, path=(tmp_path / "1",)).describe()["digest"] != described["digest"]
    assert all("spread" in x.verdict.components for x in by_model(worker_for(tiny_model_dir, path=(tmp_path / "both",))))


def test_a_model_without_weights_refuses_to_score_and_the_rule_scores_on(tiny_model_dir):
    worker = worker_for(tiny_model_dir)
    assert (worker.describe()["version"], worker.describe()["digest"]) == (None, "")
    for one in (worker, RewardWorker(RewardConfig())):
        with pytest.raises(RuntimeError, match="has no weights"):
            by_model(one)
        assert len(flat(one.score(sampled_groups(SAMPLES)))) == len(SAMPLES)


def test_a_model_of_another_kind_or_tokenizer_is_refused(tiny_model_dir, tmp_path):
    make_small_llama(tmp_path / "policy", 0)
    save(trained(tiny_model_dir), tmp_path / "reward", tiny_model_dir)
    with pytest.raises(ValueError, match="found a model of kind outcome, expected process"):
        worker_for(tiny_model_dir, "process", path=(tmp_path / "reward",))
    with pytest.raises(ValueError, match=f"{tmp_path}/reward .* is not that of the policy {tmp_path}/policy"):
        worker_for(tmp_path / "policy", path=(tmp_path / "reward",))


def test_an_update_that_is_not_the_model_changes_nothing(tiny_model_dir, tmp_path, weight_source):
    save(trained(tiny_model_dir), tmp_path / "reward", tiny_model_dir)
    worker = worker_for(tiny_model_dir, path=(tmp_path / "reward",))
    before = by_model(worker)
    tensors = dict(trained(tiny_model_dir, seed=9).named_parameters())
    head = "members.0.score.weight"
    worker.start_weight_update()
    with pytest.raises(RuntimeError, match="call init_transfer first"):
        worker.update_weights({})
    with pytest.raises(ValueError, match=f"'{head}': the sender has None"):
        meet(worker, weight_source({n: x for n, x in tensors.items() if n != head}))
    with pytest.raises(ValueError, match=rf"'{head}': the sender has \(1, 63\), the reward model \(1, 64\)"):
        meet(worker, weight_source(tensors | {head: tensors[head][:, 1:]}))
    meet(worker, weight_source(tensors))
    worker.start_weight_update()
    manifest = write_buckets(weight_source(tensors), prefix="reward-test", version=1)
    try:
        entry = replace(manifest.tensors[0], blake3="0" * 64)
        with pytest.raises(TransferError, match="received blake3"):
            worker.update_weights(replace(manifest, tensors=(entry, *manifest.tensors[1:])).to_dict())
        with pytest.raises(RuntimeError, match="nothing is staged"):
            worker.finish_weight_update(1)
        worker.update_weights(manifest.to_dict())
        worker.start_weight_update()
        with pytest.raises(RuntimeError, match="nothing is staged"):
            worker.finish_weight_update(1)
    finally:
        release(manifest)
    assert by_model(worker) == before and worker.describe()["version"] == 0


def test_a_narrow_model_takes_wide_weights(tiny_model_dir, weight_source):
    worker, model = worker_for(tiny_model_dir, dtype="bfloat16"), trained(tiny_model_dir)
    source = weight_source(dict(model.named_parameters()))
    meet(worker, source)
    manifest = write_buckets(source, prefix="reward-test", version=4)
    try:
        worker.update_weights(manifest.to_dict())
    finally:
        release(manifest)
    worker.finish_weight_update(4)
    exact = worker_for(tiny_model_dir)
    exact._model.load_state_dict(model.state_dict())
    exact._version = 4
    narrow, wide = ([x.verdict.reward for x in by_model(one)] for one in (worker, exact))
    assert narrow == pytest.approx(wide, abs=0.1) and narrow != wide
