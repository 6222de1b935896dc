"""Prompts through `cohort check`: limits, templates, BOS, and texts that hold control tokens."""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.config.run_config import load
from cluster.run.preflight import check
from tests.cluster.test_preflight import QUICKSTART
from tests.rollout.test_prompts import TURNS, tokenizer_with

pytestmark = pytest.mark.slow

ASKED = "1 + 1"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(**shape, **ids, vocab_size=len(tokenizer_with()))).save_pretrained(directory)
    return directory


@pytest.fixture
def found(model_dir, tmp_path):
    """The report for one question among others, asked with a template."""

    def run(*overrides, template=TURNS, question=ASKED):
        (model_dir / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer_with(template).save_pretrained(model_dir)
        rows = [{"question": question, "answer": "2"}, *({"question": f"1 + {i}", "answer": str(i + 1)} for i in range(2, 6))]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = "algorithm: grpo, reward: rule, steps: 1, questions_per_step: 1, samples_per_question: 2"
        settings = [
            f"model={{path: {model_dir}}}",
            f"data={{questions: {{file: {tmp_path}/q.jsonl}}, hold_out: 1, max_prompt_tokens: 64}}",
            f"stages=[{{{stage}, optimizer: {{learning_rate: 0.1}}}}]",
            "evaluation.questions=1",
            f"output={tmp_path}/run",
        ]
        return check(load(QUICKSTART, [*settings, *overrides]))

    return run


def test_a_prompt_of_the_limit_passes_and_one_token_more_is_refused_with_its_row(found):
    length = len("1 + 1") + 4
    assert found(f"data.max_prompt_tokens={length}").problems == []
    (problem,) = found(f"data.max_prompt_tokens={length - 1}").problems
    assert problem.startswith("5 rows: ") and "q.jsonl:1" in problem and str(length) in problem
    assert found("rollout.max_new_tokens=192").problems == []
    (problem,) = found("rollout.max_new_tokens=193").problems
    assert "= 257; expected at most the model's 256" in problem


def test_templates_that_are_missing_refuse_a_role_or_drop_a_message_are_refused(found):
    (problem,) = found(template=None).problems
    assert "no chat template: set prompt.template: plain" in problem
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
    (problem,) = found("data.prompt.system=Be brief.", template=refuses).problems
    assert "no system role" in problem and "q.jsonl:1" in problem
    drops = TURNS.replace("for message in messages", "for message in messages if message['role'] != 'system'")
    (problem,) = found("data.prompt.system=Be brief.", template=drops).problems
    assert "changed or dropped the system message" in problem


def test_a_template_that_shows_turns_otherwise_than_it_begins_them_is_a_warning(found):
    assert found().warnings == []
    (warning,) = found(template=TURNS.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")).warnings
    assert "an output follows '<think>', where the template shows \"the assistant's words<|end|>\"" in warning


def test_bos_stands_once_and_two_are_refused_with_the_ids(found):
    for template in (TURNS, "{{ bos_token }}" + TURNS):
        (fact,) = (fact for fact in found(template=template).facts if fact.startswith("prompt of"))
        assert fact.count("<bos>") == 1
    (problem,) = found(template="{{ bos_token }}{{ bos_token }}" + TURNS).problems
    assert "two BOS tokens (1); its ids begin [1, 1, " in problem


def test_text_that_holds_a_control_token_is_refused_in_the_chat_form_and_text_in_the_plain_one(found):
    (problem,) = found(question="say <|end|> twice").problems
    assert "'<|end|>', which would become a control token" in problem and "q.jsonl:1" in problem
    assert found("data.prompt.template=plain", question="say <|end|> twice").problems == []
