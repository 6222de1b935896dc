"""Every weight transport under one contract, the ranks of an NCCL group, and the shm pair's own promises."""

import json
import os
import struct
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from blake3 import blake3
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, ipc_engine, nccl_common, nccl_engine

from rollout.weights import receivers as weights
from rollout.weights import senders, transfer
from rollout.weights.held import sum_of_bits
from rollout.weights.senders import init_infos, make_trainer, rank_offsets
from rollout.weights.staging import Staging
from rollout.weights.transfer import Manifest, TransferError

TENSORS = {"embed": torch.arange(6.0).reshape(2, 3), "norm": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def digest_by_hand() -> str:
    embed, norm = struct.pack("<6f", *range(6)), struct.pack("<2H", 0x3FC0, 0xC000)
    rows = [["embed", "float32", [2, 3], embed], ["norm", "bfloat16", [2], norm]]
    lines = [json.dumps([*row, blake3(data).hexdigest()]) for *row, data in rows]
    return blake3("".join(lines).encode()).hexdigest()


class Client:
    """The client of one engine, recorded. `staged` is what the shm bytes were while they could be read."""

    def __init__(self, fail_in: str = "") -> None:
        self.calls, self.fail_in, self.staged = [], fail_in, None
        self.failed, self.processes = {}, 3

    def _record(self, name, argument=None):
        self.calls.append((name, argument))
        if name == self.fail_in:
            self.failed[0] = f"{name} failed"

    def init_weight_transfer_engine(self, init_info):
        self._record("init", init_info)

    def update_weights(self, update_info):
        if "manifest" in update_info:
            self.staged = Staging()
            self.staged.receive(Manifest.from_dict(update_info["manifest"]))
        self._record("update", update_info)


@pytest.fixture
def without_gpu(monkeypatch):
    """vLLM's nccl and ipc senders with the calls that reach a GPU replaced."""

    def drain(iterator, **_):
        list(iterator)

    def chunks(iterator, **_):
        names, tensors = zip(*iterator, strict=True)
        dtypes, shapes = [str(t.dtype).removeprefix("torch.") for t in tensors], [list(t.shape) for t in tensors]
        yield SimpleNamespace(names=names, dtype_names=dtypes, shapes=shapes, ipc_handle={"gpu": ()}, tensor_sizes=[24, 4])

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: SimpleNamespace(destroy=lambda: None))
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", drain)
    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", chunks)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="gpu"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)


def trainer_of(transport, source, client, rank=0):
    where = {"rank": rank, "prefix": "test", "address": "127.0.0.1"}
    return make_trainer(transport, source=source, client=client, **where)


@pytest.mark.parametrize("transport", ["shm", "nccl", "ipc"])
def test_every_transport_keeps_the_contract(transport, without_gpu, weight_source):
    source, client, other = weight_source(TENSORS), Client(), Client()
    trainer = trainer_of(transport, source, client)
    trainer.client, trainer.version = other, 7
    trainer.send_weights()
    first = trainer.digest
    assert [name for name, _ in client.calls] == ["init"]
    assert [name for name, _ in other.calls] == ["update"]
    assert trainer.sums == {name: sum_of_bits(tensor) for name, tensor in TENSORS.items()}
    engine = WeightTransferEngineFactory._registry[transport]()
    infos = init_infos(client.calls[0][1], [2, 1])
    assert [engine.init_info_cls(**info) for info in infos]
    sent = engine.update_info_cls(**other.calls[0][1])
    names = [e["name"] for e in sent.manifest["tensors"]] if transport == "shm" else list(sent.names)
    assert names == ["embed", "norm"]
    source.tensors["norm"] = torch.tensor([1.5, -2.125], dtype=torch.bfloat16)
    trainer.version = 8
    trainer.send_weights()
    assert trainer.digest != first
    source.tensors["norm"] = TENSORS["norm"]
    trainer.send_weights()
    assert trainer.digest == first == digest_by_hand()
    trainer.shutdown()


@pytest.mark.parametrize("transport", ["shm", "nccl", "ipc"])
def test_only_rank_0_speaks_and_every_rank_joins_the_gathers(transport, without_gpu, weight_source):
    passes = []

    class Counted(weight_source):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    client = Client()
    trainer_of(transport, Counted(TENSORS), client, rank=1).send_weights()
    assert client.calls == []
    assert len(passes) == 1


def test_unknown_transports_are_refused(weight_source):
    with pytest.raises(ValueError, match="unknown weight transport 'rdma'; expected shm, nccl or ipc"):
        trainer_of("rdma", weight_source(TENSORS), Client())


@pytest.mark.parametrize("sizes", [s for n in (1, 2, 3) for s in product((1, 2), repeat=n)])
def test_every_process_of_every_engine_has_an_nccl_rank_of_its_own(sizes, monkeypatch):
    ranks = [0]
    group = SimpleNamespace(stateless=lambda address, port, rank, world_size, device: ranks.append(rank) or world_size)
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", group.stateless)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    sent = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 2, "packed": True}
    for info, size in zip(init_infos(sent, sizes), sizes, strict=True):
        typed = nccl_common.NCCLWeightTransferInitInfo(**info)
        for rank in range(size):
            parallel = SimpleNamespace(data_parallel_index=0, world_size=size, rank=rank)
            assert nccl_common.worker_init_process_group(typed, parallel) == 1 + sum(sizes)
    assert ranks == list(range(1 + sum(sizes)))


def test_rank_offsets_by_hand():
    assert rank_offsets([2, 1, 2]) == [1, 3, 4]
    assert init_infos({"packed": True}, [2, 1]) == [{"packed": True}, {"packed": True}]


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("cohort_test_")}


@pytest.mark.parametrize("fail_in", ["update", ""])
def test_no_segment_outlives_an_update_however_it_ends(fail_in, weight_source):
    before, client = segments(), Client(fail_in)
    trainer_of("shm", weight_source(TENSORS), client).send_weights()
    assert bool(client.failed) == bool(fail_in)
    assert segments() == before
    assert client.staged.tensors["embed"].equal(TENSORS["embed"])


@pytest.mark.parametrize("transport", ["shm", "nccl", "ipc"])
def test_a_sender_that_cannot_go_on_still_joins_every_gather(transport, without_gpu, weight_source, monkeypatch):
    taken = []

    class Counted(weight_source):
        def __iter__(self):
            for name, tensor in super().__iter__():
                taken.append(name)
                yield name, tensor

    def full(*_, **__):
        raise OSError("no space left")

    trainer = trainer_of(transport, Counted(TENSORS), Client())
    sent_by = {"shm": (transfer, "hash_of"), "nccl": (nccl_engine, "packed_nccl_broadcast_producer")}
    monkeypatch.setattr(*sent_by.get(transport, (ipc_engine, "packed_ipc_producer")), full)
    with pytest.raises(OSError, match="no space left"):
        trainer.send_weights()
    assert taken == ["embed", "norm"]


def test_a_tensor_larger_than_vllms_buffer_has_room_in_ipcs(without_gpu, monkeypatch):
    meta = SimpleNamespace(name="embed", dtype=torch.bfloat16, shape=(152064, 3584))
    made = []
    monkeypatch.setattr(senders.WeightTransferTrainerFactory, "trainer_init", lambda info, **_: made.append(info))
    trainer_of("ipc", SimpleNamespace(metadata=lambda: [meta]), Client())
    assert made[0].packed_buffer_size_bytes == 152064 * 3584 * 2


def receiver(parameters, loaded, monkeypatch) -> weights.ShmEngine:
    """A ShmEngine on a model that reports these parameters and claims to have loaded those."""
    from vllm.model_executor.model_loader import reload

    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(reload, "finalize_layerwise_reload", lambda model, config: None)
    named = [(name, None) for name in parameters]
    model = SimpleNamespace(
        named_parameters=lambda: named, load_weights=lambda pairs: {n for n, _ in pairs} & loaded, modules=list
    )
    config = SimpleNamespace(parallel_config=None, model_config=None)
    return weights.ShmEngine(WeightTransferConfig(backend="shm"), config, torch.device("cpu"), model)


def test_a_parameter_that_the_model_did_not_load_is_an_error(monkeypatch):
    engine = receiver(["embed", "norm", "head"], {"embed", "norm", "head"}, monkeypatch)
    engine.staging.tensors = dict(TENSORS)
    with pytest.raises(TransferError, match="1 parameters of the engine's model were not loaded, first 'head'"):
        engine.finish_weight_update()


def test_nothing_is_loaded_without_a_successful_prepare(monkeypatch):
    engine = receiver(["embed"], {"embed"}, monkeypatch)
    engine.start_weight_update()
    engine.update_weights({"manifest": {"version": 1}})
    assert engine.verdict["error"].startswith("TransferError: not a weight manifest")
    engine.update_weights({"unknown": 1})
    assert "Invalid update_info for ShmEngine" in engine.verdict["error"]
    with pytest.raises(TransferError, match="nothing is staged"):
        engine.finish_weight_update()
