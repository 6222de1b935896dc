import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from reward.models.tokenizer import check_tokenizer, copy_tokenizer, padding_id, set_padding, tokenizer_hash
from rollout.tasks.arithmetic import character_tokenizer
from tests.reward.builders import write_gpt2
from tests.rollout.test_prompts import tokenizer_with


def test_only_what_decides_ids_counts(tiny_model_dir, tmp_path):
    copy_tokenizer(tiny_model_dir, tmp_path)
    set_padding(tmp_path, 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 2)
    tokenizer(["w1", "w1 w2"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/tokenizer.json").read_text())["padding"]
    for folder in (tmp_path, tmp_path / "again"):
        assert tokenizer_hash(folder) == tokenizer_hash(tiny_model_dir)
        check_tokenizer(folder, tiny_model_dir)


def test_another_vocabulary_is_refused_and_both_directories_are_named(tiny_model_dir, tmp_path):
    character_tokenizer("\n #+-=012345678").save_pretrained(tmp_path / "a")
    character_tokenizer("\n #+-=012345687").save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match=f"{tmp_path}/a .* is not that of the policy {tmp_path}/b"):
        check_tokenizer(tmp_path / "a", tmp_path / "b")


def test_without_tokenizer_json_the_vocabulary_files_count_and_without_those_nothing_does(tmp_path):
    for name, merges in (("a", "a b"), ("b", "a b"), ("c", "b a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text("{}")
        (tmp_path / name / "merges.txt").write_text(merges)
    assert tokenizer_hash(tmp_path / "a") == tokenizer_hash(tmp_path / "b") != tokenizer_hash(tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no tokenizer.json"):
        check_tokenizer(tmp_path / "a", tmp_path / "none")


def test_padding_never_ends_an_output(tiny_model_dir, tmp_path):
    def padding(folder, **changes):
        config = AutoConfig.from_pretrained(folder)
        for name, value in changes.items():
            setattr(config, name, value)
        return padding_id(folder, config)

    assert padding(tiny_model_dir) == 1, "the bos: pad is an eos"
    assert padding(tiny_model_dir, pad_token_id=0) == 0, "a padding token of its own stays"
    assert padding(tiny_model_dir, pad_token_id=3) == 1, "generation_config.json names 3 as an eos too"
    assert padding(tiny_model_dir, pad_token_id=7, eos_token_id=[2, 7]) == 1
    character_tokenizer().save_pretrained(tmp_path)
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    assert padding(tmp_path, pad_token_id=None) == 0, "the tokenizer's"
    assert padding(write_gpt2(tmp_path / "gpt2")) == 1, "the first ordinary token where there is no special one"


def test_the_templates_end_of_turn_is_no_padding(tmp_path):
    tokenizer = tokenizer_with()
    tokenizer.pad_token = "<|end|>"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    assert padding_id(tmp_path, AutoConfig.from_pretrained(tmp_path)) == tokenizer.unk_token_id
