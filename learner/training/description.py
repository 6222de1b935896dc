"""What torch's distributed checkpoints say of themselves, read without running what a file names.

torch pickles it, and its own reader would call whatever the pickle asks for.
"""

import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_NAMES = {
    "pathlib": {"PosixPath"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    # All but BytesStorageMetadata: what it describes is a pickle too.
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""By module, what the description of tensors is made of."""


class _Description(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        if global_name not in _NAMES.get(module_name, ()):
            raise pickle.UnpicklingError(f"a checkpoint of tensors has no {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


class Reader(FileSystemReader):
    """torch's reader of a directory. Raises pickle.UnpicklingError where the description names anything else than tensors."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        with Path(self.path, ".metadata").open("rb") as file:
            metadata = _Description(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
