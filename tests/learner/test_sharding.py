"""Two ranks compute what one rank computes. The model is tied, so that a parameter with two names is sharded too."""

import pytest
import torch
from safetensors.torch import load_file

from tests.learner.builders import new_worker
from tests.learner.ranks import resume, run_ranks, script


@pytest.fixture(scope="module")
def one(tied_dir, tmp_path_factory):
    """The script on one rank, in this process and with other micro-batches."""
    worker = new_worker(tied_dir, max_tokens_per_microbatch=4096)
    result = script(worker, tmp_path_factory.mktemp("one"))
    worker.close()
    return result


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(tied_dir, out):
    """The script on two ranks: what each returned."""
    return run_ranks(script, tied_dir, out)


def assert_close(found, expected, tolerance):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance * tensor.abs().max().item())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_parameters_are_sharded_dtensors(two):
    for rank, result in enumerate(two):
        assert result["describe"]["rank"] == rank
        assert set(result["describe"]["placements"].values()) == {"(Shard(dim=0),)"}


def test_the_gradient_and_every_metric_do_not_depend_on_the_ranks(one, two):
    assert_close(two[0]["moments"], one["moments"], 1e-5)
    for found, expected in zip(two[0]["reports"], one["reports"], strict=True):
        metrics = {name: value for name, value in expected.metrics.items() if name != "padding_share"}
        assert {name: found.metrics[name] for name in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert found.advantages == expected.advantages


def test_weights_agree_below_and_above_the_clipping_threshold(one, two):
    assert_close(two[0]["weights"], one["weights"], 1e-5)


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


def test_a_checkpoint_of_two_ranks_continues_on_one(tied_dir, out, two, start):
    norm = two[0]["reports"][0].metrics["grad_norm"]
    assert_close(resume(start(tied_dir), out, norm)["weights"], two[0]["weights"], 1e-5)
