"""Scalar models: a language model's backbone and one number per token. Outcome model, process model, critic; ensembles of them.

An outcome model is a Hugging Face sequence classifier with one label, a process model or a critic a token classifier with one
label. Here both are called alike: a number at every position that is asked for. Torch and transformers only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from reward.config import member_directories
from reward.models.tokenizer import copy_tokenizer, padding_id, set_padding
from rollout.files import as_umask_says

Kind = Literal["outcome", "process"]
CLASSES = {"outcome": AutoModelForSequenceClassification, "process": AutoModelForTokenClassification}
KINDS: dict[str, Kind] = {"ForSequenceClassification": "outcome", "ForTokenClassification": "process"}
Mask = Tensor | BlockMask | Mapping[str, Tensor | BlockMask]
"""(B, T), or (B, 1, T, T) as `learner.models.policy.visible` makes it."""


class ScalarModel(nn.Module):
    """K members of one kind, called as one module, so that sharding it gathers every backbone and head."""

    members: Any
    """An nn.ModuleList of PreTrainedModels."""

    def __init__(self, members: Sequence[PreTrainedModel], kind: Kind):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.kind = kind

    def forward(self, input_ids_BT: Tensor, mask: Tensor | list[Mask | None], position_ids_BT: Tensor, at_N: Tensor) -> Tensor:
        """(K, N) scalars, float32 or wider, at the positions at_N = b * T + t.

        mask: (B, T), 0 for padding, or for each member what its attention scores are added to, None for causal attention.
        """
        masks = [mask] * len(self.members) if isinstance(mask, Tensor) else mask
        given = zip(self.members, masks, strict=True)
        return torch.stack([_scalars(member, input_ids_BT, mask, position_ids_BT, at_N) for member, mask in given])

    @property
    def heads(self) -> list[nn.Linear]:
        """Every member's scalar head."""
        return [_head(member) for member in self.members]


def hidden_states(backbone: Any, input_ids_BT: Tensor, mask: Mask | None, position_ids_BT: Tensor) -> Tensor:
    """(B, T, D) of a transformers model. Without a mask positions are columns; given ones would be looked through for the
    beginnings of sequences, padding among them, and a mask be made."""
    blocks = isinstance(next(iter(mask.values())) if isinstance(mask, dict) else mask, BlockMask)
    # Never back within a pass forward and backward, which may call layers again.
    if blocks != (backbone.config._attn_implementation == "flex_attention"):
        backbone.set_attn_implementation("flex_attention" if blocks else attention_of(backbone.config))
    positions = None if mask is None else position_ids_BT
    out = backbone(input_ids=input_ids_BT, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state


def _scalars(member: PreTrainedModel, input_ids_BT: Tensor, mask: Mask | None, position_ids_BT: Tensor, at_N: Tensor) -> Tensor:
    hidden_BTD = hidden_states(member.base_model, input_ids_BT, mask, position_ids_BT)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, at_N)
    head = _head(member)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    bias = None if head.bias is None else head.bias.to(wide)
    return nn.functional.linear(hidden_ND.to(wide), head.weight.to(wide), bias)[:, 0]


def _head(member: PreTrainedModel) -> nn.Linear:
    """The linear layer beside the backbone: `score` in most classes, `classifier` in some."""
    (head,) = (child for child in member.children() if isinstance(child, nn.Linear))
    return head


@torch.no_grad()
def build(model_dir: Path, kind: Kind, *, members: int, seed: int, **how: Any) -> ScalarModel:
    """Backbones from the causal language model in `model_dir`, heads of `first_heads`; in eval mode, on the CPU.

    `how`: as transformers loads; with `device_map="meta"` names and shapes only. Raises ValueError when the directory does not
    hold all of a backbone's weights.
    """
    config = AutoConfig.from_pretrained(model_dir, num_labels=1)
    config.classifier_dropout = 0.0
    config.pad_token_id = padding_id(model_dir, config)
    config.architectures = None
    model = ScalarModel([_load(model_dir, kind, config, True, **how) for _ in range(members)], kind).eval()
    for parameter, value in first_heads(model, seed):
        parameter.copy_(value)
    return model


def first_heads(model: ScalarModel, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What heads start with, drawn from the seed: of each another, the same in every process.

    Weights are from N(0, 1/(D+1)) (Stiennon et al., 2020, arXiv 2009.01325), biases 0.
    """
    for index, head in enumerate(model.heads):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        yield head.weight, torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
        if head.bias is not None:
            yield head.bias, torch.zeros(head.bias.shape)


def load(paths: Sequence[Path], dtype: torch.dtype) -> ScalarModel:
    """The members in these directories, in eval mode, on the CPU. A directory of `save` with several counts as its members.

    Raises ValueError for a directory that holds no classifier with one label, for two kinds, and for no directory.
    """
    folders = [folder for path in paths for folder in member_directories(Path(path))]
    kinds: list[Kind] = [kind_of(folder) for folder in folders]
    if len(set(kinds)) != 1:
        raise ValueError(f"{', '.join(map(str, folders))}: found {kinds or 'no directory'}, expected reward models of one kind")
    members = [_load(folder, kinds[0], AutoConfig.from_pretrained(folder), dtype=dtype) for folder in folders]
    return ScalarModel(members, kinds[0]).eval()


def save(model: ScalarModel, directory: Path, tokenizer_dir: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write each member so that its transformers class loads it to the same scalars: `directory`, or `directory/member-k`.

    `weights`: the full state dict of `model`, for a sharded one. The tokenizer's files come from `tokenizer_dir`; only its
    padding token becomes the model's, which is how transformers finds a sequence's last token.
    """
    state = dict(weights if weights is not None else model.state_dict())
    for index, member in enumerate(model.members):
        folder = directory if len(model.members) == 1 else directory / f"member-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"members.{index}."
        member.save_pretrained(folder, state_dict={n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)})
        as_umask_says(folder)
        copy_tokenizer(tokenizer_dir, folder)
        set_padding(folder, member.config.pad_token_id)


def _load(path: Path, kind: Kind, config: Any, head_is_new: bool = False, **how: Any) -> PreTrainedModel:
    with quiet():
        member, report = CLASSES[kind].from_pretrained(
            path, config=config, attn_implementation=attention_of(config), output_loading_info=True, **how
        )
    head = {name for name, child in member.named_children() if child is _head(member)} if head_is_new else set()
    missing = sorted(name for name in report["missing_keys"] if name.split(".")[0] not in head)
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights of {type(member).__name__} are not there, such as {missing[0]}")
    return member.eval()


def attention_of(config: Any) -> str:
    """The implementation that computes what the config says: sdpa knows no cap on attention scores (Gemma 2)."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


@contextmanager
def quiet():
    """Without transformers' table of new and unused weights, which the caller judges."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def kind_of(path: Path) -> Kind:
    if not (path / "config.json").exists():
        raise ValueError(f"{path}: no config.json, expected the directory of a reward model")
    config = AutoConfig.from_pretrained(path)
    found: list[Kind] = [kind for name in config.architectures or () for suffix, kind in KINDS.items() if name.endswith(suffix)]
    if len(found) != 1 or config.num_labels != 1:
        what = f"architectures {config.architectures} with {config.num_labels} labels"
        raise ValueError(f"{path}/config.json: {what}, expected one of {', '.join(f'*{s}' for s in KINDS)} with 1 label")
    return found[0]


@torch.no_grad()
def read_scalars(
    model: ScalarModel, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], *, max_tokens: int
) -> list[list[list[float]]]:
    """Per sequence of token ids, per position to read in it, the K scalars. How sequences are batched does not matter.

    Equal sequences get equal numbers to the last bit: each is read once. Two batches differ by rounding, which a division
    by the standard deviation of a group of equal outputs would make advantages of.

    `max_tokens`: of a batch, padding included; a longer sequence goes alone. Raises ValueError for a position outside.
    """
    for index, (ids, wanted) in enumerate(zip(sequences, positions, strict=True)):
        if any(not 0 <= position < len(ids) for position in wanted):
            raise ValueError(f"sequence {index}: positions {list(wanted)}, expected 0 to {len(ids) - 1}")
    asked = [(tuple(ids), tuple(wanted)) for ids, wanted in zip(sequences, positions, strict=True)]
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], list[list[float]]] = dict.fromkeys(asked, [])
    distinct = list(answers)
    for batch in _batches([len(ids) if wanted else 0 for ids, wanted in distinct], max_tokens):
        width = max(len(distinct[i][0]) for i in batch)
        at = [row * width + position for row, i in enumerate(batch) for position in distinct[i][1]]
        values = iter(_scalars_of_rows(model, [distinct[i][0] for i in batch], width, at).T.tolist())
        for i in batch:
            answers[distinct[i]] = [next(values) for _ in distinct[i][1]]
    return [answers[one] for one in asked]


def _batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices by length, longest first, in batches of at most `max_tokens` with their padding; length 0 is left out."""
    batches: list[list[int]] = []
    for index in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _scalars_of_rows(model: ScalarModel, rows: Sequence[Sequence[int]], width: int, at: Sequence[int]) -> Tensor:
    """(K, N) scalars of right-padded rows."""
    device = model.heads[0].weight.device
    input_ids_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows], device=device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows], device=device)
    position_ids_BT = torch.arange(width, device=device).expand(len(rows), width)
    return model(input_ids_BT, mask_BT, position_ids_BT, torch.tensor(at, device=device))
