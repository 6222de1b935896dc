"""The order of the engine's calls into vLLM, and what it refuses, on a fake."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from rollout.engine.engine import Engine, EngineError
from rollout.engine.requests import completion
from rollout.engine.settings import CPU_HEAD_SIZES
from rollout.weights.receivers import WorkerExtension


class FakeLLM:
    """Answers everything with None, except for what a test sets."""

    def __init__(self, **answers) -> None:
        self.answers, self.calls = answers, []

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            self.calls.append(name)
            answer = self.answers.get(name)
            return answer(*args) if callable(answer) else answer

        return call


def staged(llm) -> Engine:
    """An engine on a fake with an update prepared."""
    engine = Engine(llm, transport="shm", stop_token_ids=(2,), prefix="fake")
    answers = {"staged_weights": [{"digest": "d", "error": ""}], "held": [({}, {}, {})]}
    llm.answers["collective_rpc"] = answers.get
    asyncio.run(engine.start_weight_update())
    asyncio.run(engine.update_weights({"manifest": {}}))
    return engine


def test_a_prefix_cache_that_stays_fails_the_commit_and_takes_the_engine_out_of_service():
    llm = FakeLLM(reset_prefix_cache=False)
    engine = staged(llm)
    with pytest.raises(EngineError, match="commit of version 5|prefix cache"):
        asyncio.run(engine.finish_weight_update(5, {}))
    assert engine.version == 0
    assert "resume_generation" not in llm.calls
    for call in (engine.generate([]), engine.logprobs([]), engine.start_weight_update()):
        with pytest.raises(EngineError, match="out of service: the commit of version 5 did not finish"):
            asyncio.run(call)


def test_a_commit_pauses_loads_drops_the_cache_and_resumes_in_this_order():
    llm = FakeLLM(reset_prefix_cache=True)
    engine = staged(llm)
    llm.calls.clear()
    asyncio.run(engine.finish_weight_update(5, {}))
    assert llm.calls == [
        "pause_generation",
        "finish_weight_update",
        "collective_rpc",
        "reset_prefix_cache",
        "resume_generation",
    ]
    assert engine.version == 5


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_output_that_neither_stopped_nor_reached_its_length_is_an_error(reason):
    made = SimpleNamespace(finish_reason=reason, token_ids=[5], logprobs=[], weight_versions=None)
    with pytest.raises(ValueError, match="vLLM ended a request with"):
        completion(SimpleNamespace(outputs=[made]), 0)


def test_a_streaming_transport_holds_the_engine_from_start_to_finish():
    async def run() -> list[str]:
        engine = Engine(llm, transport="nccl", stop_token_ids=(2,), prefix="fake")
        await engine.start_weight_update()
        with pytest.raises(EngineError, match="no answer within 0.05 s"):
            await engine.generate([], deadline_s=0.05)
        llm.calls.clear()
        await engine.update_weights({})
        await engine.finish_weight_update(1, {})
        assert engine.version == 1
        return llm.calls

    llm = FakeLLM(reset_prefix_cache=True, collective_rpc=[({}, {}, {})])
    steps = ["pause_generation", "finish_weight_update", "collective_rpc", "reset_prefix_cache", "resume_generation"]
    assert asyncio.run(run()) == ["abort", "update_weights", *steps][1:]


class OverMessages(FakeLLM):
    """Calls go to a worker as vLLM's messages, encoded and decoded."""

    update_weights = AsyncLLM.update_weights

    def __init__(self, worker) -> None:
        super().__init__()
        self.worker = worker

    async def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        method, args, kwargs = MsgpackDecoder().decode(MsgpackEncoder().encode((method, args, kwargs)))
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]


def test_handles_of_gpu_memory_reach_the_worker_through_vllms_messages():
    class Worker(WorkerExtension):
        received = None

        def update_weights(self, update_info):
            self.received = update_info

    # What torch.multiprocessing.reductions.reduce_tensor gives of a tensor on a GPU.
    handle = (torch.Tensor, torch.Size([28]), (1,), 0, torch.UntypedStorage, torch.uint8, 0, b"\0handle", 28, 0, False)
    sent = {"names": ["norm"], "shapes": [[7]], "ipc_handles": {"GPU-1": (*handle, b"\0counter", 0, b"\0event", True)}}
    engine = Engine(OverMessages(Worker()), transport="ipc", stop_token_ids=(2,), prefix="fake")
    asyncio.run(engine.update_weights(sent))
    assert engine._llm.worker.received == sent


def test_the_sizes_of_heads_are_vllms():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()
