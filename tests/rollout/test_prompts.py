import json
import string

import pytest

from rollout.config import PromptConfig
from rollout.data.prompts import encode_response, end_token_id, render, stop_token_ids
from rollout.tasks.arithmetic import character_tokenizer

CHAT, PLAIN = PromptConfig(), PromptConfig(template="plain")
TURNS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_with(template=TURNS, **changes):
    tokenizer = character_tokenizer(string.printable)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize("config", [CHAT, PLAIN], ids=lambda config: config.template)
def test_the_built_in_model_is_asked_with_bos_the_question_and_a_newline(config):
    tokenizer = character_tokenizer()
    ids = render(tokenizer, "3 + 4", config)
    assert tokenizer.decode(ids) == "<bos>3 + 4\n" and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(encode_response(tokenizer, "3+4=7\n#### 7", config)[0]) == "3+4=7\n#### 7<eos>"


def test_a_chat_prompt_has_the_system_message_the_suffix_and_the_generation_prompt():
    tokenizer = tokenizer_with()
    ids = render(tokenizer, "3 + 4?", PromptConfig(system="Be brief.", suffix="End with ####."))
    assert tokenizer.decode(ids) == "<bos><|system|>Be brief.<|end|><|user|>3 + 4?\nEnd with ####.<|end|><|assistant|>"


def test_bos_is_added_to_a_template_without_it_and_not_to_one_with_it():
    for template in (TURNS, "{{ bos_token }}" + TURNS):
        ids = render(tokenizer_with(template), "hello", CHAT)
        assert ids[0] == 1 and ids.count(1) == 1


def test_a_template_that_writes_bos_twice_is_refused_with_the_ids():
    with pytest.raises(ValueError, match=r"two BOS tokens \(1\); its ids begin \[1, 1, "):
        render(tokenizer_with("{{ bos_token }}{{ bos_token }}" + TURNS), "hello", CHAT)


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = tokenizer_with(bos_token=None)
    assert 1 not in render(tokenizer, "hello", CHAT) and 1 not in render(tokenizer, "hello", PLAIN)


@pytest.mark.parametrize("text", ["say <|end|> twice", "<eos>", "<|assistant|>7", "<unk>"])
def test_special_token_strings_are_text_in_the_plain_form_and_refused_in_the_chat_form(text):
    tokenizer = tokenizer_with()
    ids = render(tokenizer, text, PLAIN)
    assert tokenizer.decode(ids) == f"<bos>{text}\n"
    assert len(ids) == len(text) + 2 and not set(ids[1:]) & set(tokenizer.added_tokens_decoder)
    with pytest.raises(ValueError, match="would become a control token"):
        render(tokenizer, text, CHAT)
    with pytest.raises(ValueError, match="would become a control token"):
        render(tokenizer, "hello", PromptConfig(system=text))


def test_special_token_strings_in_a_response_are_text_and_only_the_end_is_a_control_token():
    tokenizer = tokenizer_with()
    ids, said = encode_response(tokenizer, "7<|end|>", CHAT)
    assert [token in tokenizer.added_tokens_decoder for token in ids] == [False] * 8 + [True]
    assert tokenizer.decode(ids) == "7<|end|><|end|>" and said == (True,) * 9


def test_what_a_program_printed_is_cut_off_as_in_an_episode_and_not_for_the_policy_to_say():
    tokenizer = character_tokenizer(string.printable)
    text = "So:\n```python\nprint(6)\n```\n```output\n6\n```\nand\n```python\n7\n```\n```output\n```\n#### 6"
    ids, said = encode_response(tokenizer, text, PLAIN, tools=True)
    assert tokenizer.decode(ids) == text + "<eos>"
    printed = "".join("\0" if s else tokenizer.decode([i]) for i, s in zip(ids, said, strict=True))
    assert [x for x in printed.split("\0") if x] == ["\n```output\n6\n```\n", "\n```output\n```\n"] and said[-1]
    assert encode_response(tokenizer, text, PLAIN) == (ids, (True,) * len(ids))


def test_an_output_ends_with_the_end_of_turn_of_the_template_and_in_the_plain_form_with_eos():
    tokenizer = tokenizer_with()
    assert end_token_id(tokenizer, CHAT) == tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_token_id(tokenizer, PLAIN) == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="no EOS token"):
        end_token_id(tokenizer_with(eos_token=None), PLAIN)


def test_a_turn_that_only_the_next_turn_ends_is_ended_by_its_first_token_and_an_unknown_end_is_refused():
    roles = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    tokenizer = tokenizer_with(roles)
    assert end_token_id(tokenizer, CHAT) == tokenizer.convert_tokens_to_ids("<|user|>")
    for nothing in ("{{ messages[-1]['content'] }}", "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"):
        with pytest.raises(ValueError, match="no control token behind an assistant's words.* or prompt.template: plain"):
            end_token_id(tokenizer_with(nothing), CHAT)


def test_every_declared_eos_id_and_the_templates_end_stop(tmp_path):
    tokenizer = tokenizer_with()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_token_ids(tmp_path, tokenizer, CHAT) == (2, end), "no file declares it"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_token_ids(tmp_path, tokenizer, CHAT) == (2, 3, 7, end)
    assert stop_token_ids(tmp_path, tokenizer, PLAIN) == (2, 3, 7)


def test_a_missing_chat_template_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="no chat template: set prompt.template: plain"):
        render(tokenizer_with(None), "hello", CHAT)


def test_a_template_that_refuses_or_drops_a_message_is_an_error():
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
    with pytest.raises(ValueError, match=r"refused the roles \['system', 'user'\]: no system role"):
        render(tokenizer_with(refuses), "hello", PromptConfig(system="Be brief."))
    drops = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="dropped the system message"):
        render(tokenizer_with(drops), "hello", PromptConfig(system="Be brief."))
    with pytest.raises(ValueError, match="the prompt has messages of system, user, and the plain form has one of the user"):
        render(tokenizer_with(), "hello", PromptConfig(template="plain", system="Be brief."))


@pytest.mark.parametrize("config", [CHAT, PLAIN], ids=lambda config: config.template)
def test_text_that_is_empty_or_unknown_to_the_tokenizer_is_refused(config):
    with pytest.raises(ValueError, match="question is empty"):
        render(tokenizer_with(), " \n", config)
    with pytest.raises(ValueError, match="characters that the tokenizer does not know"):
        render(tokenizer_with(), "3 + 4 🙂", config)
    with pytest.raises(ValueError, match="response is empty"):
        encode_response(tokenizer_with(), "", config)


def test_a_list_of_messages_is_asked_as_it_is_and_keeps_its_own_system_message():
    tokenizer = tokenizer_with(TURNS)
    turns = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    whole = render(tokenizer, messages, PromptConfig(system="Be long.", suffix="four"))
    turns[-1] = ("user", "three\nfour")
    expected = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(whole).removeprefix(tokenizer.bos_token or "") == expected.removeprefix(tokenizer.bos_token or "")
    single, text = ({"role": "user", "content": "one"},), render(tokenizer, "one", PromptConfig(system="Be brief."))
    assert render(tokenizer, single, PromptConfig(system="Be brief.")) == text
    assert render(tokenizer, (messages[0], *single), PromptConfig()) == text
    with pytest.raises(ValueError, match="messages of system, user, assistant, user, and the plain form has one of the user"):
        render(tokenizer, messages, PromptConfig(template="plain"))
