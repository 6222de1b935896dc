import json

import pytest

from rollout.config import DataConfig
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


def data(tmp_path, tokenizer, **sources):
    made = {}
    for name, (rows, columns) in sources.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[name] = {"file": str(path), "question": "{q}", **columns}
    config = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 5, "prompt": {"template": "plain"}, **made}
    return load_data(DataConfig.model_validate(config), tokenizer, 0, lambda golds: [None] * len(golds))


PAIRS = {"chosen": "#### {right}", "rejected": "#### {wrong}"}
STEPS = {"steps": "steps", "labels": "labels"}


def test_a_preference_is_a_group_of_the_better_and_the_worse_output(tmp_path, tokenizer):
    rows = [{"q": f"{i} + 1", "right": i + 1, "wrong": i} for i in range(4)]
    pairs = data(tmp_path, tokenizer, preferences=(rows, PAIRS)).preferences
    assert len(pairs) == 4
    seen = [pairs.pair(n, "dpo") for n in range(4)]
    assert {better.text for better, _ in seen} == {f"#### {i + 1}" for i in range(4)}
    for n, (better, worse) in enumerate(seen):
        assert (better.group_id, worse.group_id, better.index, worse.index) == (f"dpo/{n}", f"dpo/{n}", 0, 1)
        assert better.prompt_ids == worse.prompt_ids and int(better.text[5:]) == int(worse.text[5:]) + 1
        assert better.output_ids[-1] == tokenizer.eos_token_id and tokenizer.decode(better.output_ids[:-1]) == better.text


def test_labels_stand_at_the_last_token_of_their_steps(tmp_path, tokenizer):
    rows = [{"q": "9 + 1 - 2", "steps": ["9+1=10", "10-2=7", "#### 7"], "labels": [1, 0.0, False]}]
    outputs = data(tmp_path, tokenizer, labelled_steps=(rows, STEPS)).labelled_steps
    sample, labels = outputs.sample(0, "process_model"), outputs.at(0).labels
    assert sample.text == "9+1=10\n10-2=7\n#### 7"
    assert tokenizer.decode(sample.output_ids[:-1]) == sample.text
    assert labels == ((6, 1.0), (13, 0.0), (20, 0.0))
    assert [tokenizer.decode([sample.output_ids[p]]) for p, _ in labels] == ["\n", "\n", "<eos>"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "1", "steps": "1+1", "labels": [1]}, "column 'steps' is '1\\+1'; expected a list of steps"),
        ({"q": "1", "steps": ["1", " "], "labels": [1, 1]}, "column 'steps'"),
        ({"q": "1", "steps": ["1", "2\n3"], "labels": [1, 1]}, "column 'steps' has '2.*'; expected steps of one line each"),
        ({"q": "1", "steps": ["1\n", "2"], "labels": [1, 1]}, "expected steps of one line each"),
        ({"q": "1", "steps": ["1", "2"], "labels": [1]}, "column 'labels' is \\[1\\]; expected a list of 2 numbers"),
        ({"q": "1", "steps": ["1"], "labels": [1.5]}, "expected a list of 1 numbers in 0..1"),
        ({"q": "1", "steps": ["1"]}, "column 'labels' is None"),
    ],
)
def test_steps_and_labels_that_do_not_fit_are_refused_with_their_row(tmp_path, tokenizer, row, message):
    good = {"q": "2", "steps": ["1"], "labels": [0]}
    with pytest.raises(ValueError, match=message) as caught:
        data(tmp_path, tokenizer, labelled_steps=([good, row], STEPS))
    assert "labelled_steps.jsonl:2" in str(caught.value)


def test_given_outputs_for_evaluation_questions_are_left_out(tmp_path, tokenizer):
    held_out = data(tmp_path, tokenizer).evaluation[0].text
    rows = [{"q": held_out, "right": 1, "wrong": 2}, {"q": "5 + 1", "right": 6, "wrong": 5}]
    loaded = data(tmp_path, tokenizer, preferences=(rows, PAIRS))
    assert (len(loaded.preferences), loaded.removed_outputs) == (1, 1)
