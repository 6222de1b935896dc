"""Configuration of the learner group and of one stage's optimiser."""

from typing import Literal

from pydantic import Field, model_validator

from rollout.strict import Strict, refusal

DENSE_MASK = 4096
"""Columns up to which a row's mask is small beside what its layers leave for backward."""


class LoraConfig(Strict):
    """A low-rank adapter (arXiv 2106.09685): W + alpha / rank B A is trained of a weight W, and W stays as it is.

    There is no dropout: with one the trained policy would not be the sampled one.
    """

    rank: int = Field(default=32, gt=0)
    """Columns of B and rows of A."""
    alpha: int | None = Field(default=None, gt=0)
    """By default twice the rank."""
    targets: tuple[str, ...] = ()
    """Linear layers by the last part of their names, such as q_proj; by default all of the decoder."""
    send: Literal["adapter", "merged"] = "adapter"
    """What goes to the engines: A and B, which every engine merges with the base on its disk; or the merged weights, all of
    them, over any transport."""

    @property
    def numerator(self) -> int:
        """alpha, given or not."""
        return self.alpha or 2 * self.rank

    @property
    def scale(self) -> float:
        return self.numerator / self.rank


class LearnerConfig(Strict):
    """The FSDP group: how the arithmetic is laid out, and whether the whole policy is trained or an adapter."""

    ranks: int = Field(default=1, ge=0)
    """Learner actors, one per rank (one per GPU when there are GPUs)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Forward and backward; the master weights and the optimiser are always float32."""
    max_tokens_per_microbatch: int = Field(default=4096, gt=0)
    """Tokens of a micro-batch, padding included. A single longer output gets a micro-batch of its own."""
    logprob_chunk_tokens: int = Field(default=512, gt=0)
    """Positions whose logits exist at one time."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What of a layer's forward pass is computed again for its backward pass, to save memory: nothing; all but matrix products
    and attention; all."""
    compile: bool = False
    """Compile the model's layers with torch.compile, which takes a minute or so at a stage's start."""
    offload: bool = False
    """Keep float32 weights, gradients, Adam's moments and the reference in host memory, where AdamW is computed too: a GPU has
    a layer's weights while they are needed."""
    cores_per_rank: int | None = Field(default=None, gt=0)
    """CPU threads of a rank; by default the cores are divided among the ranks of a node."""
    lora: LoraConfig | None = None
    """Train an adapter of the policy instead of its weights."""


class OptimizerConfig(Strict):
    """AdamW with a warm-up and a schedule over the stage's updates."""

    learning_rate: float = Field(ge=0.0)
    """After the warm-up."""
    warmup_updates: int = Field(default=0, ge=0)
    """Updates in which the rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or down to `final_fraction` of the rate at the stage's last update."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Of the rate, at the last update of a schedule that is not constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of the means of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled from the gradient."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped by their global norm."""

    @model_validator(mode="after")
    def _schedule_is_followed(self):
        if self.schedule == "constant" and self.final_fraction != type(self).model_fields["final_fraction"].default:
            raise refusal([(("final_fraction",), "given, but schedule is constant; expected linear or cosine")])
        return self
