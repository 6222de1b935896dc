"""Configuration of the rollout stage: the model, the data, the engine. Pydantic only: parsing imports no torch, ray or vllm."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rollout.strict import AbsolutePath, Strict, python_function, refusal


class ModelConfig(Strict):
    """Where the policy starts: a Hugging Face directory, or a small model that the project initialises itself."""

    path: AbsolutePath | None = None
    """A Hugging Face model directory, with its tokenizer."""
    init: Literal["small-llama", "small-llama-code"] | None = None
    """Initialise a small Llama with a tokenizer for chained arithmetic or for programs, from the run's seed."""

    @model_validator(mode="after")
    def _one_of(self):
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of model.path and model.init")
        return self


class SourceConfig(Strict):
    """Rows of a file or of the hub, and the question that each of them asks."""

    file: AbsolutePath | None = None
    """A .jsonl, .json or .parquet file."""
    hub: str | None = None
    """A data set of the Hugging Face hub, as `name` or `name:split`."""
    question: str = "{question}"
    """Template for the question, over the row's columns; or one column with a list of messages, which are the prompt."""
    rows: int | None = Field(default=None, gt=0)
    """Use this many rows; for a task, how many questions to make (its default otherwise)."""

    @model_validator(mode="after")
    def _one_of(self):
        names = [name for name in ("task", "file", "hub") if name in type(self).model_fields]
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise ValueError(f"give exactly one of {', '.join(names[:-1])} and {names[-1]}")
        return self


class TaskSourceConfig(SourceConfig):
    """Rows of a built-in task, or of a file or the hub."""

    task: Literal["chained-arithmetic", "calculator"] | None = None
    """A built-in procedural task; `calculator` is made for outputs with programs."""
    operations: int | None = Field(default=None, gt=0)
    """For a task: how many operations a question has; by default 3."""

    @model_validator(mode="after")
    def _task_reads(self):
        given = [name for name in ("operations", "imperfect") if getattr(self, name, None)]
        if self.task is None and given:
            raise refusal([((name,), "given, but only a task reads it; it belongs beside `task`") for name in given])
        return self


class QuestionsConfig(TaskSourceConfig):
    """Questions with reference answers."""

    answer: str = "{answer}"
    """Template for the reference answer."""


class DemonstrationsConfig(TaskSourceConfig):
    """Questions with a demonstrated output; nobody judges it, so it has no reference answer."""

    response: str | None = None
    """Template for the demonstrated output; a task has one of its own."""
    imperfect: float = Field(default=0.0, ge=0.0, lt=1.0)
    """For a task: the chance of a mistake in a step where one is possible; for calculator, of a guess without a program."""

    @model_validator(mode="after")
    def _response_is_there(self):
        if self.task is None and self.response is None:
            why = "missing; expected a template for the demonstrated output, such as '{solution}\\n#### {answer}'"
            raise refusal([(("response",), why)])
        return self


class PreferencesConfig(SourceConfig):
    """Questions with a better and a worse output."""

    chosen: str
    """Template for the better output."""
    rejected: str
    """Template for the worse output."""


class LabelledStepsConfig(SourceConfig):
    """Questions with an output in steps and their labels."""

    steps: str
    """Column with the list of an output's steps."""
    labels: str
    """Column with the list of their labels, numbers in [0, 1]."""


class PromptConfig(Strict):
    """How a question becomes a prompt."""

    template: Literal["chat", "plain"] = "chat"
    """The tokenizer's chat template, or the text followed by a newline."""
    system: str | None = None
    """A system message (chat only), for rows that have none of their own."""
    suffix: str = ""
    """Appended to the question after a newline."""


class DataConfig(Strict):
    """The question set, the demonstrations, and the questions held out for evaluation."""

    questions: QuestionsConfig
    demonstrations: DemonstrationsConfig | None = None
    """Rows for stages that train on demonstrations."""
    preferences: PreferencesConfig | None = None
    """Pairs of a better and a worse output, for stages that read pairs from a file."""
    labelled_steps: LabelledStepsConfig | None = None
    """Outputs whose steps have labels, for a process model trained from a file."""
    evaluation: QuestionsConfig | None = None
    """Held-out questions. Without it, `hold_out` of the questions are set aside."""
    hold_out: int | None = Field(default=None, gt=0)
    """How many questions to hold out without an `evaluation`, drawn by the seed; by default 200, or as many as a task has."""
    drop_unjudgeable: bool = False
    """Leave out questions whose reference answer cannot be judged, and say how many, instead of refusing them."""
    prompt: PromptConfig = PromptConfig()
    max_prompt_tokens: int = Field(default=512, gt=0)
    """A longer prompt is an error that names the row."""

    @model_validator(mode="after")
    def _held_out_once(self):
        if self.evaluation is not None and self.hold_out is not None:
            raise refusal([(("hold_out",), "given, but data.evaluation has the held-out questions; expected one of the two")])
        return self


class SandboxConfig(Strict):
    """Limits of a program that the model wrote."""

    seconds: float = Field(default=5.0, gt=0.0)
    """Wall-clock time of a program."""
    memory_gb: float = Field(default=1.0, gt=0.0)
    """Address space."""
    output_characters: int = Field(default=2000, gt=0)
    """A longer output is cut, and a program that goes on printing is ended."""
    at_once: int = Field(default=2, gt=0)
    """Programs of a worker that run at the same time."""
    without: tuple[Literal["files", "network", "processes"], ...] = ()
    """Protections that may be missing where the kernel has none."""


class ToolsConfig(SandboxConfig):
    """Outputs that alternate between reasoning and Python programs (tool-integrated reasoning)."""

    max_programs: int = Field(default=4, gt=0)
    """Of one output; later ones are left unrun."""


class EnvironmentConfig(Strict):
    """Outputs of several turns, between which an environment of yours replies (docs/environments.md)."""

    function: Annotated[str, AfterValidator(python_function)]
    """What makes the environment of an output, as `my_env.py:make`."""
    max_turns: int = Field(default=8, gt=0)
    """Of the policy, in one output."""
    seconds: float = Field(default=10.0, gt=0.0)
    """A call of an environment that takes longer is ended, and the output has no score."""
    at_once: int = Field(default=8, gt=0)
    """Calls of a worker's environments that run at the same time."""


class SpeculativeConfig(Strict):
    """Tokens are guessed ahead and checked at once: outputs have the policy's distribution all the same (arXiv 2211.17192)."""

    model: AbsolutePath | None = None
    """Of a smaller model that guesses, and stays as it is; without one a guess is what followed the same tokens before."""
    tokens: int = Field(default=4, gt=0, le=128, description="Guessed at a time.")


KV_CACHE_GB = 1.0
GPU_MEMORY_UTILIZATION, SHARED_GPU_MEMORY_UTILIZATION = 0.85, 0.4


class RolloutConfig(Strict):
    """The vLLM engines."""

    workers: int = Field(default=1, gt=0)
    """Rollout actors, each with one engine."""
    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs of one engine, on one node.")
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the engines' weights and arithmetic."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Of one output; one that reaches it is truncated."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of the outputs that are trained on."""
    max_concurrent_samples: int = Field(default=256, gt=0)
    """Samples an engine runs at once."""
    kv_cache_gb: float | None = Field(default=None, gt=0.0)
    """Memory for the key-value cache of a CPU engine; by default 1. Read on CPUs only."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of a GPU's memory for one engine; by default 0.85, and 0.4 on a GPU that it shares. Read on GPUs only."""
    cores_per_worker: int | None = Field(default=None, gt=0)
    """CPU cores each engine binds; by default the cores are divided among the workers of a node, none idle."""
    compile: bool = False
    """Compile the model: a slower start for a few percent of speed on the CPU."""
    speculative: SpeculativeConfig | None = None
    """Guess tokens ahead; None for one at a time."""
    tools: ToolsConfig | None = None
    """Run the programs of an output and show it what they print; None for chain of thought."""
    environment: EnvironmentConfig | None = None
    """An environment of yours replies to an output, turn by turn, and says what it is worth."""
    transport: Literal["auto", "shm", "nccl", "ipc"] = "auto"
    """Of weights to engines; auto: shm on CPUs and for an adapter, else nccl. With ipc engines share GPUs with the ranks."""
    keep_kv: bool = False
    """With `in_flight`, outputs under way keep keys and values of older weights; by default they are computed anew, exactly."""
    sleep: bool = False
    """Engines on the learner's GPUs sleep while it trains: weights in host memory, and no key-value cache."""

    @model_validator(mode="after")
    def _tools_or_environment(self):
        if self.tools is not None and self.environment is not None:
            raise refusal(
                [(("tools",), "given, and so is environment, which may run programs itself; expected one of the two")]
            )
        return self

    @model_validator(mode="after")
    def _sleeps_beside_the_learner(self):
        if self.sleep and self.transport not in ("auto", "ipc"):
            raise ValueError(f"sleep: engines share the learner's GPUs, and transport is {self.transport}; expected ipc")
        return self
