"""Requests and outputs in vLLM's terms and in ours."""

from collections.abc import Sequence

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from rollout.types import Completion, FinishReason, TokenRequest

_TOKENS_ONLY = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}


def sampling_params(request: TokenRequest, stop_token_ids: Sequence[int]) -> SamplingParams:
    """One output that ends at a stop or a pause token, which it keeps, or at its length."""
    return SamplingParams(
        temperature=request.sampling.temperature,
        max_tokens=request.sampling.max_new_tokens,
        seed=request.seed,
        stop_token_ids=[*stop_token_ids, *request.pauses],
        ignore_eos=True,
        logprobs=0,
        **_TOKENS_ONLY,
    )


def logprob_params() -> SamplingParams:
    """The log-probabilities of a given sequence."""
    return SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, **_TOKENS_ONLY)


def completion(output: RequestOutput, version: int) -> Completion:
    """A finished output; `version` made its tokens where vLLM does not say. Raises ValueError for one that did not finish."""
    made = output.outputs[0]
    if made.finish_reason not in list(FinishReason):
        raise ValueError(f"vLLM ended a request with {made.finish_reason!r}, expected one of {list(FinishReason)}")
    ids = tuple(made.token_ids)
    rows = list(made.logprobs or ())[: len(ids)]  # a sample with too few is rejected by the worker, not the wave
    spans = [(int(span.version), span.start) for span in made.weight_versions or ()]
    guesses = made.spec_decode_metrics
    taken = sum(count * tokens for tokens, count in enumerate(guesses.histogram)) if guesses else 0
    return Completion(
        output_ids=ids,
        logprobs=tuple((row or {})[token].logprob for token, row in zip(ids[: len(rows)], rows, strict=True)),
        versions=tuple(spans) or ((version, 0),),
        finish_reason=FinishReason(made.finish_reason),
        guesses=(guesses.num_draft_tokens if guesses else 0, taken),
    )
