"""From text to token ids: prompts and demonstrated outputs.

What a user's text says stays text. In the plain form a string such as `<|im_end|>` is encoded as its characters; in the
chat form, where template and text are encoded together, it is refused. BOS stands exactly once where the model uses one.
All errors are ValueErrors without file and line: the caller knows the row. What is the same for every row is found once per
tokenizer, so a tokenizer is not to be changed after its first use here.
"""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from rollout.config import PromptConfig
from rollout.tools.episode import by_speaker
from rollout.types import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: "PreTrainedTokenizerBase", question: str | Messages, config: PromptConfig) -> tuple[int, ...]:
    """Token ids of the prompt that asks `question`. Raises ValueError when the text cannot be asked faithfully."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if not messages[-1]["content"].strip():
        raise ValueError("the question is empty")
    if config.suffix:
        messages[-1] = {"role": "user", "content": f"{messages[-1]['content']}\n{config.suffix}"}
    if config.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": config.system})
    if config.template == "chat":
        ids = _chat(tokenizer, messages)
    elif len(messages) > 1:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the prompt has messages of {roles}, and the plain form has one of the user; expected template: chat")
    else:
        ids = _encode(tokenizer, messages[0]["content"] + "\n", split_special_tokens=True)
    return tuple(_with_bos(tokenizer, ids))


def encode_response(
    tokenizer: "PreTrainedTokenizerBase", text: str, config: PromptConfig, tools: bool = False
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Token ids of a demonstrated output, with the token that ends it, and which of them the policy is to say.

    With `tools` it does not say the blocks of program output, which an episode puts there. Raises ValueError as `render` does.
    """
    if not text.strip():
        raise ValueError("the response is empty")
    ids: list[int] = []
    said: list[bool] = []
    for piece, by_policy in by_speaker(text) if tools else [(text, True)]:
        encoded = _encode(tokenizer, piece, split_special_tokens=True)
        ids += encoded
        said += [by_policy] * len(encoded)
    return (*ids, end_token_id(tokenizer, config)), (*said, True)


def encode_reply(tokenizer: "PreTrainedTokenizerBase", text: str, config: PromptConfig) -> list[int]:
    """Ids of what an environment says behind the token that ends the policy's turn, up to where the policy speaks again.

    In the plain form the text has lines of its own. Raises ValueError as `render` does.
    """
    if not text.strip():
        raise ValueError("the reply is empty")
    if config.template == "plain":
        return _encode(tokenizer, f"\n{text}\n", split_special_tokens=True)
    _encode(tokenizer, text, split_special_tokens=False)
    mark, asked = "the assistant's words", {"role": "user", "content": "the user's words"}
    turns = [asked, {"role": "assistant", "content": mark}, {"role": "user", "content": text}]
    after = _apply(tokenizer, turns, add_generation_prompt=True).partition(mark)[2]
    ids, end = tokenizer(after, add_special_tokens=False).input_ids, end_token_id(tokenizer, config)
    if text.strip() not in after or end not in ids:
        raise ValueError(f"the chat template changed or dropped the reply; behind an assistant's turn it rendered {after!r}")
    return ids[ids.index(end) + 1 :]


def encode_steps(
    tokenizer: "PreTrainedTokenizerBase", steps: Sequence[str], config: PromptConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of an output given as steps, one a line and ended, and the position of each step's last token.

    Every step is put into tokens by itself, so its end is known and not looked for.
    """
    ids: list[int] = []
    ends = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        ids += _encode(tokenizer, step if last else step + "\n", split_special_tokens=True)
        if last:
            ids.append(end_token_id(tokenizer, config))
        ends.append(len(ids) - 1)
    return tuple(ids), tuple(ends)


def end_token_id(tokenizer: "PreTrainedTokenizerBase", config: PromptConfig) -> int:
    """The token that ends an output: what the chat template puts after an assistant's turn; in the plain form the EOS.

    Raises ValueError where there is none.
    """
    return _end_token_id(tokenizer, config.template)


@lru_cache(maxsize=8)
def _end_token_id(tokenizer: "PreTrainedTokenizerBase", template: str) -> int:
    end = template_end(tokenizer) if template == "chat" else tokenizer.eos_token_id
    if end is None and template == "chat":
        raise ValueError(
            "the chat template puts no control token behind an assistant's words, so what ends an output is unknown; "
            "expected a template that ends the turn, or prompt.template: plain"
        )
    if end is None:
        raise ValueError("the tokenizer has no EOS token, so no output could ever end")
    return cast(int, end)


def template_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The first control token behind an assistant's turn, be it the last one or followed by another; None without one.

    Raises ValueError for a tokenizer without a chat template.
    """
    mark = "the assistant's words"
    turns = [{"role": "user", "content": "the user's words"}, {"role": "assistant", "content": mark}]
    for messages in (turns, [*turns, turns[0]]):
        rendered = _apply(tokenizer, messages, add_generation_prompt=False)
        after = tokenizer(rendered.rpartition(mark)[2], add_special_tokens=False).input_ids
        if ends := [token for token in after if token in _control_tokens(tokenizer)]:
            return ends[0]
    return None


def turns_differ(tokenizer: "PreTrainedTokenizerBase") -> str:
    """How a chat template shows an assistant's turn otherwise than it begins one for an output; empty where it does not."""
    asked = [{"role": "user", "content": "the user's words"}]
    begun = _apply(tokenizer, asked, add_generation_prompt=True)
    shown = _apply(tokenizer, [*asked, {"role": "assistant", "content": "the assistant's words"}], add_generation_prompt=False)
    if shown.startswith(begun):
        return ""
    same = len(os.path.commonprefix([begun, shown]))
    return f"an output follows {begun[same:]!r}, where the template shows {shown[same:]!r} for a turn that is over"


def declared_ends(model_dir: Path, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The eos ids of generation_config.json, config.json and the tokenizer."""
    found = [cast(int | None, tokenizer.eos_token_id)]
    for name in ("generation_config.json", "config.json"):
        if (path := Path(model_dir) / name).exists():
            eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            found += eos if isinstance(eos, list) else [eos]
    return {token for token in found if token is not None}


def stop_token_ids(model_dir: Path, tokenizer: "PreTrainedTokenizerBase", config: PromptConfig) -> tuple[int, ...]:
    """Every token that ends an output: the declared ones, and the one that demonstrations are trained to end with.

    Raises ValueError where that one is unknown.
    """
    return tuple(sorted(declared_ends(model_dir, tokenizer) | {end_token_id(tokenizer, config)}))


def _chat(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    rendered = _apply(tokenizer, messages, add_generation_prompt=True)
    for message in messages:
        _encode(tokenizer, message["content"], split_special_tokens=False)
        if message["content"].strip() not in rendered:
            raise ValueError(f"the chat template changed or dropped the {message['role']} message; it rendered {rendered!r}")
    return tokenizer(rendered, add_special_tokens=False).input_ids


def _apply(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: set prompt.template: plain, or use a model that has one")
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"the chat template refused the roles {roles}: {error}") from error


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, split_special_tokens: bool) -> list[int]:
    """Ids of a user's text on its own; raises ValueError where any would be a control token."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens).input_ids
    control = _control_tokens(tokenizer)
    bad = [token for token in ids if token in control]
    if bad and bad[0] == tokenizer.unk_token_id and str(tokenizer.unk_token) not in text:
        raise ValueError(f"the text {text[:80]!r} has characters that the tokenizer does not know")
    if bad:
        raise ValueError(f"the text {text[:80]!r} contains {control[bad[0]]!r}, which would become a control token")
    return ids


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    # Some tokenizers add runs of blanks as tokens; those are text.
    return {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}


def _with_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    bos = cast(int | None, tokenizer.bos_token_id)
    if bos is None:
        return ids
    if ids[:1] != [bos] and _puts_first(tokenizer) == [bos]:
        ids = [bos, *ids]
    if ids[:2] == [bos, bos]:
        raise ValueError(f"the chat template makes a prompt with two BOS tokens ({bos}); its ids begin {ids[:8]}")
    return ids


@lru_cache(maxsize=8)
def _puts_first(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer puts before the empty text: a model uses BOS when this is it."""
    return tokenizer("").input_ids[:1]
