"""The table, and how a run replaces its cells."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.algorithms import TABLE, Algorithm, DataSource, Need, resolve


def test_the_rows_are_those_of_the_paper():
    cells = {name: (row.data_source, row.reward, row.credit.cell, row.weighting.cell) for name, row in TABLE.items()}
    assert cells == {
        "sft": (DataSource.DEMONSTRATIONS, "none", "ones", "plain"),
        "grpo": (DataSource.POLICY_SAMPLES, "rule", "group_relative", "clipped"),
    }


def test_every_row_prints_its_coefficient():
    formulas = {name: row.weighting.formula for name, row in TABLE.items()}
    assert formulas == {"sft": "A", "grpo": "[not clipped at 0.2] (pi/pi_old) A + 0.04 (pi_ref/pi - 1)"}


def test_a_row_needs_what_its_weighting_reads():
    assert TABLE["sft"].needs == frozenset()
    assert TABLE["grpo"].needs == {Need.REFERENCE, Need.BEHAVIOUR_LOGPROBS}
    assert resolve("grpo", {}, {"kl": 0.0}).needs == {Need.BEHAVIOUR_LOGPROBS}
    assert resolve("grpo", {}, {"old": "learner"}).needs == {Need.REFERENCE, Need.OLD_LOGPROBS}


def test_an_override_changes_fields_of_the_rows_cell_or_names_another_cell():
    row = resolve("grpo", {"ddof": 1}, {"cell": "plain"})
    assert row.credit.model_dump() == TABLE["grpo"].credit.model_dump() | {"ddof": 1}
    assert row.weighting.cell == "plain"
    assert resolve("grpo", {"cell": "ones"}, {"cell": "clipped", "kl": 0.1}).weighting.kl == 0.1
    assert resolve("sft", {}, {}) == TABLE["sft"]


def test_an_unknown_row_suggests_the_nearest():
    with pytest.raises(ValueError, match="found 'gpro', expected one of sft, grpo; did you mean 'grpo'"):
        resolve("gpro", {}, {})


@pytest.mark.parametrize("override", [{"clp": 0.1}, {"kl": -1.0}, {"old": "both"}, {"cell": "sequence"}])
def test_a_cell_refuses_what_it_does_not_read(override):
    with pytest.raises(ValidationError):
        resolve("grpo", {}, override)


def test_cells_that_contradict_the_row_are_refused():
    with pytest.raises(ValidationError, match="credit group_relative needs rewards, but reward is none"):
        resolve("sft", {"cell": "group_relative"}, {})
    with pytest.raises(ValidationError, match="which demonstrations lack"):
        resolve("sft", {}, {"cell": "clipped"})


def test_a_row_survives_its_dump():
    assert all(Algorithm.model_validate(row.model_dump()) == row for row in TABLE.values())


def test_the_table_is_imported_without_torch_vllm_and_ray():
    code = "import sys, learner.algorithms; print([m for m in ('torch', 'transformers', 'vllm', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
