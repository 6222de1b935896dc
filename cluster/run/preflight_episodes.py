"""Checks before a run of what outputs of several turns need: the sandbox of programs, and the user's environment."""

import asyncio
from typing import TYPE_CHECKING

from cluster.config.run_config import RunConfig
from reward.judging.selftest import Report
from rollout.data.prompts import encode_reply
from rollout.environments.process import EnvironmentFailed, Environments
from rollout.patience import Patience
from rollout.tools.sandbox import Sandbox, SandboxError
from rollout.types import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_sandbox(config: RunConfig, report: Report) -> None:
    if config.rollout.tools is not None:
        try:
            asyncio.run(Sandbox(config.rollout.tools).check())
        except SandboxError as error:
            report.problems.append(f"rollout.tools: {error}")
        else:
            report.facts.append("sandbox: programs run here with every protection asked for")


def check_environment(config: RunConfig, question: Question, tokenizer: "PreTrainedTokenizerBase", report: Report) -> None:
    """The environment made for a question, and ended again. Raises ValueError where prompts cannot hold a reply."""
    if (environment := config.rollout.environment) is None:
        return
    encode_reply(tokenizer, question.gold, config.data.prompt)
    made = Environments(environment.function)

    async def try_out() -> None:
        (await made.begin(question, 0, Patience(environment.seconds, 1))).close()

    try:
        asyncio.run(try_out())
    except EnvironmentFailed as error:
        report.problems.append(f"rollout.environment: {error}")
    else:
        report.facts.append(f"environment: {environment.function} makes one for {question.id}")
    finally:
        made.close()
