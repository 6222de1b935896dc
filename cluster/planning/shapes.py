"""What a plan needs of a model, counted on the model itself without its weights; and the operations of its passes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.run_config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a decoder."""

    layers: int
    hidden: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together; values have the same."""
    inner: int
    """Width of the feed-forward layer, of a mixture that of the experts which a position meets."""
    vocabulary: int
    parameters: int
    in_layers: int
    """Parameters of the layers: all but embeddings, output head and the last norm."""
    heads: int
    key_heads: int

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter of all linear layers, of which it has seven, or their like in fewer; at most."""
        sides = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys) + 3 * (self.hidden + self.inner)
        return rank * self.layers * sides

    def cached(self, width: int) -> int:
        """Bytes of the keys and values of one token, of elements of this width."""
        return 2 * self.layers * self.keys * width

    def body(self, positions: float, pairs: float) -> float:
        """FLOPs of the layers' forward pass: 2 for a weight and a position, 4 for an element of the queries and each key that
        is looked at; `pairs` counts these over all positions."""
        return 2 * self.in_layers * positions + 4 * self.layers * self.queries * pairs

    def useful(self, positions: float, pairs: float, trained: float) -> float:
        """FLOPs of forward and backward, nothing computed twice: three times the forward pass, the head's on trained tokens."""
        return 3 * (self.body(positions, pairs) + 2 * self.head * trained)


def shape_of(config: "PreTrainedConfig") -> Shape:
    """Counted on the model that transformers builds of the config, without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from learner.models.policy import experts_of
    from learner.models.sharding import decoder_layers

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    if experts_of(config.to_dict()):
        inner = max(inner, config.num_experts_per_tok * (getattr(config, "moe_intermediate_size", None) or inner))
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=config.num_attention_heads * size,
        keys=key_heads * size,
        inner=inner,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()),
        in_layers=sum(p.numel() for layer in decoder_layers(model) for p in layer.parameters()),
        heads=config.num_attention_heads,
        key_heads=key_heads,
    )


def read_shape(path: Path, key: str = "model.path") -> Shape:
    """Of a model directory, or of its config.json alone. Raises ValueError for what is no dense text model's."""
    from transformers import AutoConfig

    from learner.models.policy import check_config, experts_of

    file = path if path.is_file() else path / "config.json"
    if not file.is_file():
        raise ValueError(f"{key}: {path}: found no config.json; a plan needs nothing else of the model's directory")
    try:
        config = AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
        check_config(config)
        if experts := experts_of(config.to_dict()):
            raise ValueError(f"{experts} is {getattr(config, experts)}, a mixture of experts; a plan knows dense models")
        return shape_of(config)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}: {file}: {error}") from error


def shape_of_recipe(config: RunConfig) -> Shape:
    """Raises ValueError as `read_shape` does."""
    if config.model.path is not None:
        return read_shape(config.model.path)
    import tempfile

    from rollout.tasks.arithmetic import make_small_llama

    with tempfile.TemporaryDirectory(prefix="cohort-plan-") as folder:
        make_small_llama(Path(folder), config.seed, str(config.model.init))
        return read_shape(Path(folder))
