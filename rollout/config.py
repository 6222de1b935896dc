"""Configuration of the rollout stage: the model, the data, the engine. Pydantic only: parsing imports no torch, ray or vllm."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Frozen, and unknown keys are errors: a key that nothing reads cannot be written."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Strict):
    """Where the policy starts: a Hugging Face directory, or a small model that the project initialises itself."""

    path: Path | None = None
    """A Hugging Face model directory, with its tokenizer."""
    init: Literal["small-llama", "small-llama-code"] | None = None
    """Initialise a small Llama with a tokenizer for chained arithmetic or for programs, from the run's seed."""

    @model_validator(mode="after")
    def _one_of(self):
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of model.path and model.init")
        return self


class SourceConfig(Strict):
    """Where rows come from, and how their columns become question, answer and response."""

    task: Literal["chained-arithmetic", "calculator"] | None = None
    """A built-in procedural task; `calculator` is made for outputs with programs."""
    operations: int = Field(3, gt=0)
    """For a task: how many operations a question has."""
    file: Path | None = None
    """A .jsonl or .parquet file."""
    hub: str | None = None
    """A data set of the Hugging Face hub, as `name` or `name:split`."""
    question: str = "{question}"
    """Template for the question, over the row's columns."""
    answer: str = "{answer}"
    """Template for the reference answer."""
    response: str | None = None
    """Template for the demonstrated output; needed by demonstrations."""
    chosen: str | None = None
    """Template for the better output; needed by preferences."""
    rejected: str | None = None
    """Template for the worse output; needed by preferences."""
    steps: str | None = None
    """Column with the list of an output's steps; needed by labelled steps."""
    labels: str | None = None
    """Column with the list of their labels, numbers in [0, 1]; needed by labelled steps."""
    rows: int | None = Field(None, gt=0)
    """Use this many rows; for a task, how many questions to make (its default otherwise)."""
    imperfect: float = Field(0.0, ge=0.0, lt=1.0)
    """For a task's demonstrations: the chance that a step where a mistake is possible has one (calculator: that the answer
    is guessed, without a program)."""

    @model_validator(mode="after")
    def _one_of(self):
        if sum(x is not None for x in (self.task, self.file, self.hub)) != 1:
            raise ValueError("give exactly one of task, file and hub")
        return self


class PromptConfig(Strict):
    """How a question becomes a prompt."""

    template: Literal["chat", "plain"] = "chat"
    """The tokenizer's chat template, or the text followed by a newline."""
    system: str | None = None
    """A system message (chat only)."""
    suffix: str = ""
    """Appended to the question after a newline."""


class DataConfig(Strict):
    """The question set, the demonstrations, and the questions held out for evaluation."""

    questions: SourceConfig
    demonstrations: SourceConfig | None = None
    """Rows for stages that train on demonstrations."""
    preferences: SourceConfig | None = None
    """Pairs of a better and a worse output, for stages that read pairs from a file."""
    labelled_steps: SourceConfig | None = None
    """Outputs whose steps have labels, for a process model trained from a file."""
    evaluation: SourceConfig | None = None
    """Held-out questions. Without it, `hold_out` of the questions are set aside."""
    hold_out: int = Field(200, gt=0)
    """How many questions to hold out when there is no `evaluation` source, chosen by the run's seed."""
    drop_unjudgeable: bool = False
    """Leave out questions whose reference answer cannot be judged, and say how many, instead of refusing them."""
    prompt: PromptConfig = PromptConfig()
    max_prompt_tokens: int = Field(512, gt=0)
    """A longer prompt is an error that names the row."""


class SandboxConfig(Strict):
    """Limits of a program that the model wrote."""

    seconds: float = Field(5.0, gt=0.0)
    memory_gb: float = Field(1.0, gt=0.0)
    """Address space."""
    output_characters: int = Field(2000, gt=0)
    """A longer output is cut, and a program that goes on printing is ended."""
    at_once: int = Field(2, gt=0)
    """Programs of a worker that run at the same time."""
    without: tuple[Literal["files", "network", "processes"], ...] = ()
    """Protections that may be missing where the kernel has none."""


class ToolsConfig(SandboxConfig):
    """Outputs that alternate between reasoning and Python programs (tool-integrated reasoning)."""

    max_programs: int = Field(4, gt=0)
    """Of one output; later ones are left unrun."""


class RolloutConfig(Strict):
    """The vLLM engines."""

    workers: int = Field(1, gt=0)
    """Rollout actors, each with one engine."""
    tensor_parallel_size: int = Field(1, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_new_tokens: int = Field(256, gt=0)
    temperature: float = Field(1.0, gt=0.0)
    max_concurrent_samples: int = Field(256, gt=0)
    """Samples an engine runs at once."""
    kv_cache_gb: float = Field(1.0, gt=0.0)
    """Memory for the key-value cache of a CPU engine."""
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0)
    """Share of a GPU's memory for one engine."""
    cores_per_worker: int | None = Field(None, gt=0)
    """CPU cores each engine binds; by default the cores are divided among the workers of a node, none idle."""
    compile: bool = False
    """Compile the model: a slower start for a few percent of speed on the CPU."""
    tools: ToolsConfig | None = None
    """Run the programs of an output and show it what they print; None for chain of thought."""
    transport: Literal["auto", "shm", "nccl", "ipc"] = "auto"
    """How weights reach the engines; auto is shm on the CPU and nccl between GPUs."""
