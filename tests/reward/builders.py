from rollout.types import FinishReason, Question, Sample


def question(ordinal=0, gold="7"):
    return Question(ordinal=ordinal, id=f"q:{ordinal}", text="3 + 4", gold=gold, prompt_ids=(1, 2))


def sample(text, ordinal=0, index=0, tokens=3, finish_reason=FinishReason.STOP):
    return Sample(
        ordinal=ordinal,
        group_id=f"grpo/{ordinal}",
        index=index,
        attempt=0,
        prompt_ids=(1, 2),
        output_ids=(5,) * tokens,
        sampled_mask=(True,) * tokens,
        logprobs=(-0.5,) * tokens,
        text=text,
        versions=((0, 0),),
        finish_reason=finish_reason,
    )
