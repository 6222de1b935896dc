"""What a run does with outputs that have no score, and with files that cannot be written; `cohort train` on a fleet in this
process, and once on real parts."""

import json
import logging
from collections import Counter

import pytest

from cluster.records.ledger import history
from cluster.records.metrics import read_jsonl
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.clusters import sample_files, steps
from tests.cluster.fleet import Engine, cut_off, install, without_numbers
from tests.cluster.test_cli import invoke
from tests.learner.builders import write_model

pytestmark = pytest.mark.slow

RULE = {"reward": "rule"}
STAGES = {
    "grpo": RULE,
    "dapo": {"max_refills": 1},
    "online_rft": {},
    "rft": {"offline_questions": 16},
    "dpo": {"offline_questions": 32, "samples_per_question": 4},
    "ppo": RULE | {"critic_optimizer": {"learning_rate": 1e-4}},
    "distill": {"teacher": "the model itself"},
    "distill_top_k": {"teacher": "the model itself", "weighting": {"k": 8}},
    "process_model": {},
    "process_model, completed": {"labels": {"cell": "monte_carlo", "completions": 2}},
}


def stage(name, **changes):
    fields = {"steps": 2, "questions_per_step": 8, "samples_per_question": 2, "optimizer": {"learning_rate": 1e-4}}
    return fields | {"algorithm": name.partition(",")[0], "name": name.replace(", ", "-")} | changes


def train(folder, engine, *stages, **changes):
    """`cohort train` on a fleet with this engine: what the command said, and the run directory."""
    tokenizer = character_tokenizer()
    shape = {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    write_model(folder / "model", **shape, pad_token_id=tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder / "model")
    stages = [one | {"teacher": str(folder / "model")} if "teacher" in one else one for one in stages]
    questions = {"task": "chained-arithmetic", "rows": 40}
    recipe = {
        "name": "fleet", "output": str(folder / "run"), "model": {"path": str(folder / "model")}, "stages": stages,
        "data": {"questions": questions, "hold_out": 6, "prompt": {"template": "plain"}, "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 32}, "evaluation": {"samples_per_question": 2}, **changes,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        install(patch, engine)
        return invoke("train", folder / "recipe.yaml"), folder / "run"


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A run through all stages in which every 16th output is rejected."""
    engine = Engine(lambda wave, n, made: without_numbers(made) if n % 16 == 0 else made)
    done, run_dir = train(tmp_path_factory.mktemp("spoiled"), engine, *(stage(name, **more) for name, more in STAGES.items()))
    assert done.exit_code == 0, done.output
    return run_dir


@pytest.mark.parametrize("name", STAGES)
def test_a_rejected_output_stays_in_its_group_and_leaves_the_loss_whatever_is_trained(spoiled, name):
    lines = [line for line in steps(spoiled) if line["stage"] == name.replace(", ", "-")]
    rows = [row for line in lines for row in sample_files(spoiled)[f"step_{line['step']}.jsonl"]]
    sizes = Counter(row["group"] for row in rows)
    assert len(lines) == 2 and set(sizes.values()) == {2} and len(sizes) == 16, "groups are whole"
    assert {row["verdict"] for row in rows} <= {"score", "rejected"}
    assert any(row["fate"] == "trained" for row in rows)
    assert all(line["skipped"] == 0 for line in lines), "nothing that is not a number reached the loss"
    if name == "dpo":  # its pairs are built of outputs with a score
        return
    rejected = [row for row in rows if row["verdict"] == "rejected"]
    assert rejected and all((r["fate"], r["reward"], r["advantage"]) == ("dropped", None, None) for r in rejected)
    assert all("log-probability nan at token 0" in row["reason"] for row in rejected)
    dropped = [x for x in history(spoiled / "ledger.jsonl") if x["event"] == "dropped" and "nan" in x["reason"]]
    booked = {(g, i) for x in dropped for g, indices in x["groups"].items() for i in indices}
    assert booked >= {(row["group"], row["index"]) for row in rejected}
    for line in lines:
        assert line["rejected_share"] == line["unscored_share"] <= 0.125 and line["unscorable_share"] == 0
    if name in ("grpo", "dapo"):
        alone = {row["group"] for row in rejected}
        assert all(row["fate"] == "dropped" for row in rows if row["group"] in alone), "a group of one has no credit"


MINE = """
import os

def score(output, gold):
    if output and "####" not in output:
        FAIL
    return {"correct": float(output.endswith(f"#### {gold}"))}
"""
FAILING = {
    "rejected": (without_numbers, "", "log-probability nan at token 0"),
    "killed": (cut_off, "os.kill(os.getpid(), 9)", "killed: its process ended with signal SIGKILL"),
    "error": (cut_off, 'raise RuntimeError("no answer")', "RuntimeError: no answer"),
    "unscorable": (lambda made: made, "", "'see below' is not a number"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_run_of_which_nothing_has_a_score_stops_within_one_step_names_the_cause_and_ends_with_3(tmp_path, kind):
    """The first two waves are the evaluation at the start, the next is the first step's."""
    spoiled, fails, cause = FAILING[kind]
    reward = {}
    if fails:
        (tmp_path / "mine.py").write_text(MINE.replace("FAIL", fails))
        reward = {"function": f"{tmp_path}/mine.py:score"}
    engine = Engine(lambda wave, n, made: spoiled(made) if wave > 2 else made)
    if kind == "unscorable":
        engine.gold = lambda wave, gold: "see below" if wave > 2 else gold
    grpo = stage("grpo", **RULE, questions_per_step=2)
    done, run_dir = train(tmp_path, engine, grpo, reward=reward)
    assert done.exit_code == 3 and engine.wave == 3, done.output
    assert f"the run failed: score step 1: 4 of 4 outputs have no score (4 {kind})" in done.output
    assert "The first, grpo/0[0]:" in done.output and cause in done.output
    (line,) = steps(run_dir)
    assert (line["step"], line["unscored_share"], line[f"{kind}_share"], line["thin_group_share"]) == (1, 1.0, 1.0, 1.0)
    rows = sample_files(run_dir)["step_1.jsonl"]
    assert len(rows) == 4 and all(row["fate"] == "dropped" and cause in row["reason"] for row in rows)
    assert not [x for x in history(run_dir / "ledger.jsonl") if x["event"] in ("scored", "trained")]
    assert not (run_dir / "checkpoints").exists() and len(read_jsonl(run_dir / "evaluations.jsonl")) == 1


def test_what_is_neither_a_checkpoint_nor_the_ledger_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def obstruct(wave, n, made):
        if n == 1:
            for name in ("samples", "evaluations"):
                (tmp_path / "run" / name).write_text("a file where a directory is to be")
            for name in ("evaluations.jsonl", "summary.json", "run.png"):
                (tmp_path / "run" / name).mkdir()
        return made

    def cannot(*args, **options):
        raise ImportError("No module named 'tensorboard'")

    monkeypatch.setattr("cluster.run.launch.TensorBoardSink", cannot)
    done, run_dir = train(tmp_path, Engine(obstruct), stage("grpo", **RULE, questions_per_step=2))
    assert done.exit_code == 0, done.output
    assert "unjudged" in done.output and len(steps(run_dir)) == 2 and list((run_dir / "checkpoints").iterdir())
    warned = [m for m in map(logging.LogRecord.getMessage, caplog.records) if "the run goes on without it" in m]
    names = ("tensorboard", "evaluations/step_0.jsonl", "evaluations.jsonl", "samples/step_1.jsonl", "summary.json", "run.png")
    assert [next(n for n in names if f"{run_dir / n} cannot" in m) for m in warned] == list(names), warned
    assert "ImportError: No module named 'tensorboard'" in warned[0] and "Error" in warned[3]
