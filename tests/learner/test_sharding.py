"""Two ranks compute what one rank computes. The model is tied, so that a parameter with two names is sharded too."""

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from learner.models import sharding
from tests.learner.builders import free_address, new_worker
from tests.learner.ranks import continue_stages, resume, resume_there, run_ranks, script
from tests.learner.stages import assert_close, assert_equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out_of_one(tmp_path_factory):
    return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def one(tied_dir, out_of_one):
    """The script on one rank, in this process and with other micro-batches."""
    worker = new_worker(tied_dir, max_tokens_per_microbatch=4096)
    result = script(worker, out_of_one)
    worker.close()
    return result


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(tied_dir, out):
    """The script on two ranks: what each returned."""
    return run_ranks(script, tied_dir, out)


def test_on_a_gpu_attention_is_not_the_one_that_builds_a_plan_for_every_width(monkeypatch, tmp_path):
    calls = {torch.cuda: ("is_available", "device_count", "set_device"), dist: ("init_process_group",)}
    for module, names in (calls | {sharding: ("init_device_mesh",)}).items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: 1)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        sharding.init_distributed(0, 1, f"file://{tmp_path}/store", 60)
        assert before and not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_group_across_nodes_meets_at_one_address_of_its_first_rank_and_one_of_a_node_in_a_file(tmp_path):
    address = free_address()
    store = sharding._store(0, 1, address)
    store.set("key", "value")
    port = int(address.rpartition(":")[2])
    sockets = [s for s in psutil.Process().net_connections("inet") if s.laddr.port == port and s.status == psutil.CONN_LISTEN]
    assert [s.laddr.ip for s in sockets] == ["127.0.0.1"] and store.get("key") == b"value"
    kept = sharding._store(0, 1, f"file://{tmp_path}/store")
    kept.set("key", "value")
    assert (tmp_path / "store").is_file()


def test_parameters_are_sharded_dtensors(two):
    for rank, result in enumerate(two):
        assert result["describe"]["rank"] == rank
        assert set(result["describe"]["placements"].values()) == {"(Shard(dim=0),)"}


def test_the_gradient_and_every_metric_do_not_depend_on_the_ranks(one, two):
    assert_close(two[0]["gradients"], one["gradients"])
    for found, expected in zip(two[0]["reports"], one["reports"], strict=True):
        metrics = {name: value for name, value in expected.metrics.items() if name != "padding_share"}
        assert {name: found.metrics[name] for name in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert found.advantages == expected.advantages


def test_weights_agree_below_and_above_the_clipping_threshold(one, two):
    assert_close(two[0]["weights"], one["weights"])


def test_every_rank_returns_the_same(two):
    first, second = two
    assert first["reports"] == second["reports"]
    assert first["logprobs"] == second["logprobs"]
    assert_equal(first["weights"], second["weights"])


def test_ranks_without_rows_take_part(one, two):
    for result in two:
        assert result["token"].metrics["objective"] == pytest.approx(one["token"].metrics["objective"], rel=1e-4)
        assert result["nothing"].metrics["no_signal"] == 1


def test_a_non_finite_row_of_one_rank_skips_the_step_on_all(two):
    for result in two:
        assert result["skipped"].metrics["skipped"] == 2
        assert result["unchanged_by_skips"]


def test_a_checkpoint_of_two_ranks_continues_exactly_on_two(two):
    for result in two:
        assert result["resumed"]["report"] == result["reports"][3]
        assert_equal(result["resumed"]["weights"], result["weights"])


def test_an_export_has_the_gathered_weights(out, two):
    exported = load_file(out / "export" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, two[0]["resumed"]["weights"][name])
    assert len(exported) == len(two[0]["weights"]) - 1


def test_one_rank_says_which_files_of_all_ranks_a_checkpoint_takes(two, out):
    first, second = (result["stages"]["saved"] for result in two)
    assert second == {} and {"__0_0.distcp", "__1_0.distcp", ".metadata", "reward_model.json"} == first.keys()
    found = {p.name: p.stat().st_size for p in (out / "stages").iterdir()}
    assert first.keys() == found.keys()
    assert all(first[name] == found[name] > 1000 for name in first if name.endswith(".distcp"))


def test_a_checkpoint_of_two_ranks_continues_on_one(tied_dir, out, two, start):
    norm = two[0]["reports"][0].metrics["grad_norm"]
    assert_close(resume(start(tied_dir), out, norm)["weights"], two[0]["weights"])


def test_a_checkpoint_of_one_rank_continues_on_two(tied_dir, out_of_one, one):
    (out_of_one / "norm").write_text(repr(one["reports"][0].metrics["grad_norm"]))
    for each in run_ranks(resume_there, tied_dir, out_of_one):
        assert_close(each["weights"], one["weights"])


def flat(scalars):
    return [score for example in scalars for members in example for score in members]


def test_stages_of_reward_model_and_ppo_do_not_depend_on_the_ranks(one, two):
    for each in two:
        for name in ("policy", "critic", "reward_model"):
            assert_close(each["stages"][name], one["stages"][name], 1e-4)
        for found, expected in zip(each["stages"]["reports"], one["stages"]["reports"], strict=True):
            metrics = {name: value for name, value in expected.metrics.items() if name != "padding_share"}
            assert {name: found.metrics[name] for name in metrics} == pytest.approx(metrics, rel=1e-3, abs=1e-5)
        assert flat(each["stages"]["scalars"]) == pytest.approx(flat(one["stages"]["scalars"]), abs=1e-4)


def test_a_checkpoint_of_all_four_models_continues_exactly_on_two_and_closely_on_one(tied_dir, out, two, start):
    for each in two:
        assert each["stages"]["continued"]["report"] == each["stages"]["reports"][-1]
        for name in ("policy", "critic", "reward_model"):
            assert_equal(each["stages"]["continued"][name], each["stages"][name])
    alone = continue_stages(start(tied_dir), out)
    for name in ("policy", "critic", "reward_model"):
        assert_close(alone[name], two[0]["stages"][name], 1e-4)
