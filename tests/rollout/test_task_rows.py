"""Questions and demonstrations that the built-in tasks make."""

import pytest

from rollout.config import DataConfig, DemonstrationsConfig, QuestionsConfig
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import SMALL_MODELS, character_tokenizer, is_held_out
from tests.rollout.test_data import accept


def test_the_built_in_task_gives_disjoint_questions_and_imperfect_demonstrations():
    task = QuestionsConfig(task="chained-arithmetic", rows=300)
    shown = DemonstrationsConfig(task="chained-arithmetic", rows=300, imperfect=0.4)
    config = DataConfig(questions=task, demonstrations=shown, hold_out=50)
    data = load_data(config, character_tokenizer(), 7, accept)
    assert (len(data.train), len(data.evaluation), len(data.demonstrations)) == (300, 50, 300)
    assert data.removed_questions == data.removed_outputs == 0
    assert all(is_held_out(q.text) for q in data.evaluation)
    assert not any(is_held_out(data.train.question(n).text) for n in range(300))
    assert data.train.question(0).id.startswith("chained-arithmetic/questions:")
    samples = [data.demonstrations.sample(n, "sft") for n in range(300)]
    assert all(character_tokenizer().decode(sample.output_ids) == sample.text + "<eos>" for sample in samples)
    steps = [line for sample in samples for line in sample.text.split("\n")[:-1]]
    wrong = sum(eval(line.replace("=", "==")) is False for line in steps)
    assert 0.04 < wrong / len(steps) < 0.12


def test_what_programs_printed_in_demonstrations_is_trained_only_where_there_are_no_tools():
    task = QuestionsConfig(task="calculator", operations=2, rows=40)
    shown = DemonstrationsConfig(task="calculator", operations=2, rows=40)
    config = DataConfig(questions=task, demonstrations=shown, hold_out=10)
    tokenizer = character_tokenizer(*SMALL_MODELS["small-llama-code"])
    for tools in (True, False):
        data = load_data(config, tokenizer, 7, accept, tools)
        for sample in (data.demonstrations.sample(n, "sft") for n in range(40)):
            printed = [i for i, said in zip(sample.output_ids, sample.sampled_mask, strict=True) if not said]
            answer = sample.text.rpartition("#### ")[2]
            assert tokenizer.decode(printed) == (f"\n```output\n{answer}\n```\n" if tools else "")


def test_the_built_in_task_has_defaults_for_its_size():
    data = load_data(DataConfig(questions=QuestionsConfig(task="chained-arithmetic")), character_tokenizer(), 0, accept)
    assert (len(data.train), len(data.evaluation), data.demonstrations) == (4096, 200, None)


@pytest.mark.parametrize(
    ("task", "operations", "train", "held_out"), [("chained-arithmetic", 1, 233, 37), ("chained-arithmetic", 2, 3316, 200)]
)
def test_a_task_with_few_different_questions_gives_them_all(task, operations, train, held_out):
    source = QuestionsConfig(task=task, operations=operations)
    data = load_data(DataConfig(questions=source), character_tokenizer(), 0, accept)
    assert (len(data.train), len(data.evaluation)) == (train, held_out)
    texts = {q.text for q in data.train.rows}
    assert len(texts) == train and not texts & {q.text for q in data.evaluation}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"questions": {"rows": 234}},
            "data.questions.rows: {}234 different questions to train on asked for; expected at most 233",
        ),
        ({"hold_out": 38}, "data.hold_out: {}38 different questions to hold out asked for; expected at most 37"),
        (
            {"evaluation": {"rows": 99}},
            "data.evaluation.rows: {}99 different questions to hold out asked for; expected at most 37",
        ),
        ({"demonstrations": {"rows": 999}}, "data.demonstrations.rows: {}999 different questions to train on"),
    ],
)
def test_more_questions_than_a_task_has_are_an_error_that_says_how_many_there_are(config, message):
    one = {"task": "chained-arithmetic", "operations": 1}
    sources = {name: one | value if isinstance(value, dict) else value for name, value in ({"questions": {}} | config).items()}
    with pytest.raises(ValueError) as caught:
        load_data(DataConfig.model_validate(sources), character_tokenizer(), 0, accept)
    assert str(caught.value).startswith(message.format("chained-arithmetic, operations: 1: "))
