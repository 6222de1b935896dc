"""Session fixtures that several packages share: a tiny model directory, and one real vLLM engine on it."""

import asyncio
import gc
import itertools
import json
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

gc.disable()  # while test files are imported; what they import is not looked through again while the tests run


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # triton would tell of what is not collected at the end


VOCABULARY = ["<pad>", "<s>", "</s>", "<end>", *"0123456789+-=", *(f"w{i}" for i in range(83))]
"""100 tokens, a word each; </s> (2) and <end> (3) both end an output."""


def save_tiny_model(directory: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """A Llama of 2 layers and 100 tokens, float32, with its tokenizer; weights large enough that log-probabilities vary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "additional_special_tokens": ["<end>"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3], "top_k": 5, "top_p": 0.5}))
    return directory


@pytest.fixture(scope="session", autouse=True)
def no_folder_is_left():
    """What actors' code makes in this process is removed with it, as a run does at its end."""
    yield
    from rollout.leftovers import remove_folder

    for folder in Path(tempfile.gettempdir()).glob(f"cohort_*_{os.getpid()}_*"):
        remove_folder(folder)


class Tensors:
    """A weight source over a dict of tensors."""

    def __init__(self, tensors: dict) -> None:
        self.tensors = dict(tensors)

    def metadata(self) -> list:
        return [SimpleNamespace(name=n, dtype=t.dtype, shape=tuple(t.shape)) for n, t in self.tensors.items()]

    def __iter__(self):
        return iter(self.tensors.items())


class Loop:
    """An event loop on a thread: AsyncLLM must be used from the loop that started it, across many tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine, timeout=300):
        return self.submit(coroutine).result(timeout)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="session")
def make_tiny_model():
    return save_tiny_model


@pytest.fixture(scope="session")
def weight_source():
    return Tensors


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine_loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def start_engine(engine_loop):
    """Start an engine on a model directory; the caller shuts it down."""
    from rollout.config import RolloutConfig
    from rollout.engine.engine import Engine

    names = (f"test{n}" for n in itertools.count())  # in production a process has one engine

    def start(model_dir: Path, **options):
        config = RolloutConfig(**{"kv_cache_gb": 0.125, "max_concurrent_samples": 32, "transport": "shm", **options})
        arguments = {"max_model_len": 512, "stop_token_ids": (2, 3), "cores": None, "prefix": next(names)}
        return engine_loop.run(Engine.start(model_dir, config, **arguments))

    return start


@pytest.fixture(scope="session")
def engine(tiny_model_dir, engine_loop, start_engine):
    """A real engine on `tiny_model_dir`. Whoever publishes other weights puts the first ones back."""
    engine = start_engine(tiny_model_dir)
    yield engine
    engine_loop.run(engine.shutdown())
