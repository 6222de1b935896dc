"""The table, and how a run replaces its cells."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.algorithms.table import (
    REWARD_MODELS,
    TABLE,
    Algorithm,
    DataSource,
    Need,
    RewardModelRow,
    resolve,
    resolve_reward_model,
)

DEMONSTRATIONS, POLICY_SAMPLES = DataSource.DEMONSTRATIONS, DataSource.POLICY_SAMPLES
INITIAL_SAMPLES, PAIRS = DataSource.INITIAL_SAMPLES, DataSource.PAIRS


def test_the_rows_are_those_of_the_papers():
    cells = {name: (row.data_source, row.reward, row.credit.cell, row.weighting.cell) for name, row in TABLE.items()}
    assert cells == {
        "sft": (DEMONSTRATIONS, "none", "ones", "plain"),
        "rft": (INITIAL_SAMPLES, "rule", "accepted", "plain"),
        "online_rft": (POLICY_SAMPLES, "rule", "accepted", "plain"),
        "dpo": (PAIRS, "rule", "signed", "preference"),
        "ppo": (POLICY_SAMPLES, "outcome_model", "gae", "clipped"),
        "grpo": (POLICY_SAMPLES, "outcome_model", "group_relative", "clipped"),
        "grpo_process": (POLICY_SAMPLES, "process_model", "group_relative", "clipped"),
        "dr_grpo": (POLICY_SAMPLES, "rule", "group_relative", "clipped"),
        "dapo": (POLICY_SAMPLES, "rule", "group_relative", "clipped"),
        "rloo": (POLICY_SAMPLES, "rule", "leave_one_out", "plain"),
        "gspo": (POLICY_SAMPLES, "rule", "group_relative", "sequence_clipped"),
        "cispo": (POLICY_SAMPLES, "rule", "group_relative", "cispo"),
        "distill": (POLICY_SAMPLES, "rule", "reverse_kl", "clipped"),
        "distill_top_k": (POLICY_SAMPLES, "rule", "ones", "top_k"),
    }


def test_every_row_prints_its_coefficient():
    z_score = "A = sum from t on of (r - mean) / std"
    assert {name: row.formula for name, row in TABLE.items()} == {
        "sft": "A; A = 1",
        "rft": "A; A = I(o)",
        "online_rft": "A; A = I(o)",
        "dpo": "A 0.1 sigmoid(0.1 (m(o-) - m(o+))), m = mean log(pi/pi_ref); A = +1 on o+, -1 on o-",
        "ppo": "[not clipped at 0.2] (pi/pi_old) A; A = GAE of r - 0.04 log(pi_old/pi_ref)",
        "grpo": f"[not clipped at 0.2] (pi/pi_old) A + 0.04 (pi_ref/pi - 1); {z_score}",
        "grpo_process": f"[not clipped at 0.2] (pi/pi_old) A + 0.04 (pi_ref/pi - 1); {z_score}",
        "dr_grpo": "[not clipped at 0.2] (pi/pi_old) A; A = sum from t on of r - mean",
        "dapo": f"[not clipped at -0.2, +0.28] (pi/pi_old) A; {z_score}",
        "rloo": "A; A = r - mean of the others' r",
        "gspo": f"[not clipped at -0.0003, +0.0004] s A, s = exp(mean log(pi/pi_old)); {z_score}",
        "cispo": f"min(pi/pi_old, 5) A; {z_score}",
        "distill": "[not clipped at 0.2] (pi/pi_old) A; A = log(p_T/pi_old)",
        "distill_top_k": "A pi(v) log(p_T(v)/pi(v)) of the 16 likeliest v and the rest; A = 1",
    }
    assert resolve("grpo", {}, {"kl_ratio": True}).weighting.formula.endswith("+ 0.04 (pi/pi_old) log(pi_ref/pi)")


def test_a_row_needs_what_its_credit_and_its_weighting_read():
    reference, behaviour = Need.REFERENCE, Need.BEHAVIOUR_LOGPROBS
    assert {name: row.needs for name, row in TABLE.items()} == {
        "sft": set(),
        "rft": set(),
        "online_rft": set(),
        "dpo": {reference},
        "ppo": {behaviour, reference, Need.CRITIC},
        "grpo": {behaviour, reference},
        "grpo_process": {behaviour, reference},
        "dr_grpo": {behaviour},
        "dapo": {behaviour},
        "rloo": set(),
        "gspo": {behaviour},
        "cispo": {behaviour},
        "distill": {behaviour, Need.TEACHER},
        "distill_top_k": {Need.TEACHER},
    }
    assert resolve("grpo", {}, {"kl": 0.0}).needs == {behaviour}
    assert resolve("grpo", {}, {"old": "learner"}).needs == {reference, Need.OLD_LOGPROBS}
    assert resolve("ppo", {"kl": 0.0}, {"old": "learner"}).needs == {Need.CRITIC, Need.OLD_LOGPROBS}


def test_rows_say_which_tokens_belong_together_and_how_large_a_group_must_be():
    assert {name: row.weighting.unit for name, row in TABLE.items() if row.weighting.unit != "token"} == {
        "dpo": "pair",
        "gspo": "sequence",
    }
    assert {name for name, row in TABLE.items() if row.credit.smallest_group == 2} == {
        *("grpo", "grpo_process", "dr_grpo", "dapo", "rloo", "gspo", "cispo")
    }


def test_an_override_changes_fields_of_the_rows_cell_or_names_another_cell():
    row = resolve("grpo", {"ddof": 1}, {"cell": "plain"}, reward="rule")
    assert row.credit.model_dump() == TABLE["grpo"].credit.model_dump() | {"ddof": 1}
    assert (row.weighting.cell, row.reward) == ("plain", "rule")
    assert resolve("grpo", {"cell": "ones"}, {"cell": "clipped", "kl": 0.1}).weighting.kl == 0.1
    assert resolve("rft", data_source=POLICY_SAMPLES) == TABLE["online_rft"]
    assert resolve("sft") == TABLE["sft"]


def test_an_unknown_row_suggests_the_nearest():
    with pytest.raises(ValueError, match="found 'grpoo', expected one of sft, rft, .*; did you mean 'grpo'"):
        resolve("grpoo")
    with pytest.raises(ValueError, match="found 'outcome', expected one of outcome_model, process_model"):
        resolve_reward_model("outcome")


@pytest.mark.parametrize("override", [{"clp": 0.1}, {"kl": -1.0}, {"old": "both"}, {"cell": "sequence"}])
def test_a_cell_refuses_what_it_does_not_read(override):
    with pytest.raises(ValidationError):
        resolve("grpo", {}, override)


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("sft", {"credit": {"cell": "group_relative"}}, "credit group_relative needs rewards, but reward is none"),
        ("ppo", {"reward": "none"}, "credit gae needs rewards, but reward is none"),
        ("distill", {"data_source": DEMONSTRATIONS}, "credit reverse_kl needs rewards, and demonstrations are not scored"),
        ("rft", {"reward": "process_model"}, "credit accepted reads reward outcome_model or rule, found process_model"),
        ("dpo", {"reward": "process_model"}, "credit signed reads reward outcome_model or rule, found process_model"),
        (
            "grpo",
            {"credit": {"cell": "denoised_group_relative"}},
            "credit denoised_group_relative reads reward rule, found outcome_model",
        ),
        ("rft", {"data_source": DEMONSTRATIONS}, "credit accepted needs rewards, and demonstrations are not scored"),
        ("sft", {"weighting": {"cell": "clipped"}}, "divides by the sampling probability, which demonstrations lack"),
        (
            "dpo",
            {"credit": {"cell": "group_relative"}, "weighting": {"cell": "clipped"}},
            "weighting clipped divides by the sampling probability, which pairs lack",
        ),
        ("ppo", {"data_source": INITIAL_SAMPLES}, "expected policy_samples, found initial_samples"),
        ("grpo", {"credit": {"cell": "signed"}}, "credit signed compares two outputs; expected data source pairs"),
        ("grpo", {"weighting": {"cell": "preference"}}, "expected pairs and signed, found policy_samples and group_relative"),
        ("dpo", {"credit": {"cell": "group_relative"}}, "expected pairs and signed, found pairs and group_relative"),
        (
            "distill_top_k",
            {"credit": {"cell": "reverse_kl"}},
            "the teacher is in the credit .* and in the weighting .*; expected one",
        ),
        ("ppo", {"weighting": {"kl": 0.04}}, "KL is in the reward .* and in the loss .*; expected kl 0 in one"),
    ],
)
def test_cells_that_make_no_algorithm_together_are_refused(name, overrides, why):
    with pytest.raises(ValidationError, match=why):
        resolve(name, **overrides)


def test_the_reward_models_are_those_of_the_papers():
    cells = {
        name: (row.supervision, row.data_source, row.labels.cell, row.objective.cell) for name, row in REWARD_MODELS.items()
    }
    assert cells == {
        "outcome_model": ("outcome", POLICY_SAMPLES, "rule", "ranking"),
        "process_model": ("process", POLICY_SAMPLES, "rule", "cross_entropy"),
    }
    assert not REWARD_MODELS.keys() & TABLE.keys()


def test_the_labels_and_the_objective_of_a_reward_model_can_be_replaced():
    row = resolve_reward_model("process_model", {"cell": "monte_carlo", "soft": True})
    assert (row.labels.completions, row.labels.soft) == (8, True)
    assert resolve_reward_model("outcome_model", {}, {"cell": "cross_entropy"}).objective.cell == "cross_entropy"
    assert resolve_reward_model("outcome_model", {"cell": "file"}, data_source=PAIRS).labels.cell == "file"
    assert resolve_reward_model("process_model", {"cell": "file"}, data_source=DEMONSTRATIONS).supervision == "process"


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("process_model", {"objective": {"cell": "ranking"}}, "expected cross_entropy for a process model"),
        ("outcome_model", {"labels": {"cell": "monte_carlo"}}, "expected rule or file for an outcome model"),
        ("outcome_model", {"labels": {"cell": "file"}}, "found file and policy_samples"),
        ("outcome_model", {"labels": {"every_token": True}}, "every_token: expected an outcome model"),
        ("process_model", {"labels": {"every_token": True}}, "every_token: expected an outcome model"),
        ("outcome_model", {"data_source": PAIRS}, "found rule and pairs"),
        (
            "outcome_model",
            {"labels": {"cell": "file"}, "objective": {"cell": "cross_entropy"}, "data_source": PAIRS},
            "a pair only says which is better; expected objective ranking, found cross_entropy",
        ),
    ],
)
def test_cells_that_make_no_reward_model_together_are_refused(name, overrides, why):
    with pytest.raises(ValidationError, match=why):
        resolve_reward_model(name, **overrides)


def test_a_row_survives_its_dump():
    assert all(Algorithm.model_validate(row.model_dump()) == row for row in TABLE.values())
    assert all(Algorithm.model_validate_json(row.model_dump_json(), strict=True) == row for row in TABLE.values())
    assert all(RewardModelRow.model_validate(row.model_dump()) == row for row in REWARD_MODELS.values())


def test_the_table_is_imported_without_torch_vllm_and_ray():
    names = ("torch", "transformers", "vllm", "ray")
    code = f"import sys, learner.algorithms.table; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
