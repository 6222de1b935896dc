import json
import string
from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rollout.config import DataConfig, DemonstrationsConfig, PromptConfig, QuestionsConfig
from rollout.data.datasets import load_data
from rollout.data.rows import load_rows
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import FinishReason

SHARED = Path(__file__).parents[2] / "../shared/data"


def accept(golds):
    return [None] * len(golds)


def odd(golds):
    return [f"{gold} is odd" if int(gold) % 2 else None for gold in golds]


def rows_file(tmp_path, rows, name="train.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count, first=0):
    return [{"question": f"q{n}", "answer": n, "response": f"r{n}"} for n in range(first, first + count)]


def load(config, seed=0, gold_check=accept):
    return load_data(DataConfig(**config), character_tokenizer(string.printable), seed, gold_check)


def from_file(path, **changes):
    held_out = {} if "evaluation" in changes else {"hold_out": 2}
    return {"questions": QuestionsConfig(file=path), **held_out, "prompt": PromptConfig(template="plain")} | changes


def asked(data, ordinals):
    return [data.train.question(ordinal).text for ordinal in ordinals]


def test_every_question_comes_once_per_epoch_in_an_order_of_that_epochs_own(tmp_path):
    data = load(from_file(rows_file(tmp_path, numbered(12))))
    assert len(data.train) == 10
    first, second = asked(data, range(10)), asked(data, range(10, 20))
    assert sorted(first) == sorted(second) and len(set(first)) == 10 and first != second
    assert asked(data, [13, 2, 13]) == [second[3], first[2], second[3]]
    assert data.train.question(13).ordinal == 13


def test_the_order_depends_on_the_seed_only(tmp_path):
    config = from_file(rows_file(tmp_path, numbered(40)))
    assert asked(load(config, seed=1), range(90)) == asked(load(config, seed=1), range(90))
    assert asked(load(config, seed=1), range(38)) != asked(load(config, seed=2), range(38))


def test_a_question_knows_its_line_its_gold_and_its_tokens(tmp_path):
    path = rows_file(tmp_path, numbered(3))
    data = load(from_file(path, hold_out=1))
    question = next(q for q in (data.train.question(0), data.train.question(1), *data.evaluation) if q.text == "q1")
    assert (question.id, question.gold) == (f"{path}:2", "1")
    assert character_tokenizer(string.printable).decode(question.prompt_ids) == "<bos>q1\n"


def test_a_question_carries_its_row_in_what_json_can_say(tmp_path):
    day, columns = date(2024, 2, 29), {"question": "q0", "answer": 0, "hints": ["a", "b"], "level": None}
    parquet.write_table(
        pyarrow.Table.from_pylist([columns | {"day": day}, columns | {"question": "q1"}]), tmp_path / "train.parquet"
    )
    data = load(from_file(tmp_path / "train.parquet", hold_out=1))
    found = {q.text: q.columns for q in (data.train.question(0), *data.evaluation)}
    assert found["q0"] == json.loads(json.dumps(found["q0"])) == columns | {"day": "2024-02-29"}
    assert found["q1"] == columns | {"question": "q1", "day": None}


def test_questions_with_the_same_text_keep_ids_of_their_own(tmp_path):
    path = rows_file(tmp_path, [*numbered(3), {"question": "q0", "answer": 0}])
    evaluation = QuestionsConfig(file=rows_file(tmp_path, numbered(1, first=9), "test.jsonl"))
    data = load(from_file(path, evaluation=evaluation))
    ids = [data.train.question(n).id for n in range(4)]
    assert len(set(ids)) == 4 and Counter(asked(data, range(4)))["q0"] == 2


def test_held_out_questions_are_chosen_by_the_seed_and_their_text_is_in_no_training_data(tmp_path):
    # Each text stands twice, once in another case and spacing.
    rows = [{"question": f"add {n}", "answer": n, "response": "r"} for n in range(20)]
    rows += [{"question": f"Add  {n}", "answer": n, "response": "r"} for n in range(20)]
    path = rows_file(tmp_path, rows)
    shown = DemonstrationsConfig(file=path, response="{response}")
    data = load(from_file(path, hold_out=5, demonstrations=shown), seed=3)
    held_out = {q.text.lower().replace("  ", " ") for q in data.evaluation}
    assert [q.ordinal for q in data.evaluation] == [0, 1, 2, 3, 4]
    train = {text.lower().replace("  ", " ") for text in asked(data, range(len(data.train)))}
    assert not held_out & train and len(held_out | train) == 20
    assert data.removed_questions == 40 - 5 - len(data.train) > 0
    assert data.removed_outputs == 2 * len(held_out) and len(data.demonstrations) == 40 - 2 * len(held_out)
    again, other = (load(from_file(path, hold_out=5), seed=seed).evaluation for seed in (3, 4))
    assert again == data.evaluation and other != again


def test_an_evaluation_source_keeps_its_order_and_leaves_the_training_set(tmp_path):
    train = rows_file(tmp_path, numbered(10))
    evaluation = QuestionsConfig(file=rows_file(tmp_path, numbered(4, first=8), "test.jsonl"))
    data = load(from_file(train, evaluation=evaluation))
    assert [(q.ordinal, q.text) for q in data.evaluation] == [(0, "q8"), (1, "q9"), (2, "q10"), (3, "q11")]
    assert len(data.train) == 8 and data.removed_questions == 2


def test_too_few_rows_are_an_error(tmp_path):
    path = rows_file(tmp_path, numbered(5))
    with pytest.raises(ValueError, match=r"data.hold_out: 5, and there are 5 questions; expected fewer"):
        load(from_file(path, hold_out=5))
    with pytest.raises(ValueError, match="no training question is left: all 5"):
        load(from_file(path, evaluation=QuestionsConfig(file=path)))


def test_golds_that_cannot_be_judged_are_listed_by_line(tmp_path):
    path = rows_file(tmp_path, numbered(4))
    with pytest.raises(ValueError) as caught:
        load(from_file(path), gold_check=odd)
    assert str(caught.value).replace(str(path), "train.jsonl") == (
        "2 rows: the reference answer cannot be judged; data.drop_unjudgeable: true leaves such questions out\n"
        "  train.jsonl:2: 1 is odd\n  train.jsonl:4: 3 is odd"
    )


def test_questions_whose_gold_cannot_be_judged_are_left_out_and_counted_where_asked(tmp_path):
    path = rows_file(tmp_path, numbered(5))
    data = load(from_file(path, hold_out=1, drop_unjudgeable=True), gold_check=odd)
    kept = [*data.train.rows, *data.evaluation]
    assert data.unjudgeable == 2 and sorted(q.gold for q in kept) == ["0", "2", "4"]
    with pytest.raises(ValueError, match="5 rows: the reference answer cannot be judged"):
        load(from_file(path, drop_unjudgeable=True), gold_check=lambda golds: ["no"] * len(golds))


def test_a_prompt_of_the_longest_length_passes_and_longer_ones_are_listed(tmp_path):
    path = rows_file(tmp_path, [{"question": "x" * n, "answer": 1} for n in (6, 7, 8, 9)])
    assert len(load(from_file(path, max_prompt_tokens=11)).train) == 2
    with pytest.raises(ValueError) as caught:
        load(from_file(path, max_prompt_tokens=9))
    assert str(caught.value).replace(str(path), "train.jsonl") == (
        "2 rows: the prompt is longer than data.max_prompt_tokens: 9\n  train.jsonl:3: 10 tokens\n  train.jsonl:4: 11 tokens"
    )


def test_text_that_cannot_be_put_into_tokens_names_its_line(tmp_path):
    path = rows_file(tmp_path, [*numbered(3), {"question": "say <eos>", "answer": 1}])
    with pytest.raises(ValueError, match=r"1 row: cannot be put into tokens\n  .*train.jsonl:4: .*'<eos>', which would become"):
        load(from_file(path, prompt=PromptConfig()))


def test_a_demonstration_is_a_sample_that_ends_with_eos_and_is_trained_whole(tmp_path):
    path = rows_file(tmp_path, numbered(5))
    data = load(from_file(path, hold_out=1, demonstrations=DemonstrationsConfig(file=path, response="{response}!")))
    sample = data.demonstrations.sample(6, "sft")
    tokenizer = character_tokenizer(string.printable)
    number = sample.text[1:-1]
    assert tokenizer.decode(sample.prompt_ids) == f"<bos>q{number}\n"
    assert sample.text == f"r{number}!" and tokenizer.decode(sample.output_ids) == f"r{number}!<eos>"
    assert sample.sampled_mask == (True,) * 4 and sample.logprobs == () and sample.versions == ((0, 0),)
    assert (sample.ordinal, sample.group_id, sample.index, sample.attempt) == (6, "sft/6", 0, 0)
    assert sample.finish_reason is FinishReason.STOP
    texts = [data.demonstrations.sample(n, "sft").text for n in range(8)]
    assert Counter(texts[:4]) == Counter(texts[4:]) and len(set(texts)) == 4


def test_real_word_problems_render_through_templates():
    svamp, mawps = SHARED / "svamp/test.jsonl", SHARED / "mawps/singleop.jsonl"
    if not svamp.exists():
        pytest.skip("the shared question sets are not beside the project")
    shown = DemonstrationsConfig(file=svamp, question="{Body} {Question}", response="{Equation} = {Answer:g}\n#### {Answer:g}")
    questions = QuestionsConfig(file=mawps, question="{input}", answer="{target:g}")
    config = DataConfig(questions=questions, demonstrations=shown, max_prompt_tokens=2000)
    values = [str(value) for source in (shown, questions) for row in load_rows(source) for value in row.columns.values()]
    tokenizer = character_tokenizer("".join(sorted({*"\n#=", *"".join(values)})))
    data = load_data(config, tokenizer, 0, accept)
    assert len(data.train) + data.removed_questions == 362 and len(data.evaluation) == 200
    assert all(q.gold.isdigit() or "." in q.gold for q in data.evaluation)
    assert len(data.demonstrations) + data.removed_outputs == 1000
