"""Validation errors in words: what was found, what was expected, and the nearest valid name."""

import json
import re
import types
import typing
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from rollout.strict import nearest

Loc = tuple[str | int, ...]
"""Where a value stands: ("stages", 0, "steps")."""
ELSEWHERE = {
    "stages.N.samples_per_question": (
        "num_generations n rollout_n group_size num_samples num_return_sequences n_samples_per_prompt num_samples_per_prompt"
        " num_generations_per_prompt samples_per_prompt"
    ),
    "stages.N.questions_per_step": (
        "batch_size train_batch_size rollout_batch_size per_device_train_batch_size prompts_per_step num_prompts_per_step"
        " generation_batch_size global_batch_size"
    ),
    "stages.N.steps": (
        "epochs num_epochs num_train_epochs total_epochs num_episodes max_steps num_steps total_steps training_steps"
        " total_training_steps train_steps"
    ),
    "stages.N.updates_per_batch": "ppo_epochs num_iterations mu max_epochs num_updates updates_per_step num_minibatches",
    "stages.N.algorithm": "adv_estimator advantage_estimator loss_type method",
    "stages.N.weighting.kl or stages.N.weighting.beta": "beta",
    "stages.N.weighting.kl or stages.N.credit.kl": "kl_coef kl_beta kl_coeff init_kl_coef kl_loss_coef kl_penalty kl_weight",
    "stages.N.weighting.clip": (
        "clip_range cliprange clip_ratio clip_ratio_low epsilon epsilon_low eps_clip clip_eps clip_epsilon"
    ),
    "stages.N.weighting.clip_high": "epsilon_high clip_ratio_high eps_clip_high clip_higher",
    "stages.N.weighting.behaviour": "tis_imp_ratio_cap rollout_is rollout_is_threshold vllm_importance_sampling_correction",
    "stages.N.credit.normalize_std": "scale_rewards norm_adv_by_std_in_grpo normalize_advantages std_normalization",
    "stages.N.credit.gamma": "discount discount_factor",
    "stages.N.credit.lam": "lambda gae_lambda lambd",
    "stages.N.value_clip": "cliprange_value value_clip_range",
    "stages.N.teacher": "teacher_model teacher_model_path teacher_model_name_or_path teacher_path",
    "stages.N.max_refills": "dynamic_sampling max_num_gen_batches filter_groups",
    "stages.N.optimizer.learning_rate": "lr actor_learning_rate actor_lr policy_lr",
    "stages.N.critic_optimizer.learning_rate": "critic_lr critic_learning_rate",
    "stages.N.optimizer.warmup_updates": "warmup warmup_steps warmup_ratio lr_warmup_steps lr_warmup_ratio num_warmup_steps",
    "stages.N.optimizer.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "stages.N.optimizer.max_grad_norm": "grad_clip clip_grad gradient_clipping grad_norm_clip max_norm",
    "stages.N.optimizer.betas": "adam_betas adam_beta1 adam_beta2",
    "stages.N.optimizer.eps": "adam_epsilon adam_eps",
    "learner.max_tokens_per_microbatch": (
        "gradient_accumulation_steps grad_accum micro_batch_size micro_train_batch_size mini_batch_size ppo_mini_batch_size"
        " ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu packing max_seq_length"
    ),
    "learner.compute_dtype": "bf16 fp16 torch_dtype precision mixed_precision param_dtype",
    "learner.activation_checkpointing": "gradient_checkpointing activation_checkpoint gradient_checkpoint recompute",
    "learner.compile": "torch_compile use_torch_compile",
    "learner.ranks": "world_size num_gpus n_gpus_per_node num_processes nproc_per_node actor_num_gpus_per_node",
    "rollout.max_new_tokens": (
        "max_completion_length max_response_length generate_max_len max_tokens response_length max_output_tokens"
    ),
    "rollout.workers": "vllm_num_engines num_engines num_rollout_workers",
    "rollout.tensor_parallel_size": "tp tp_size vllm_tensor_parallel_size tensor_model_parallel_size",
    "rollout.gpu_memory_utilization": "vllm_gpu_memory_utilization gpu_mem_util",
    "rollout.max_concurrent_samples": "max_num_seqs",
    "rollout.compile": "enforce_eager",
    "rollout.speculative.tokens": "speculative_config num_speculative_tokens",
    "rollout.speculative.model": "speculative_model draft_model draft_model_path",
    "data.max_prompt_tokens": "max_prompt_length prompt_max_len max_input_length",
    "data.questions.file": "train_files train_file dataset dataset_name dataset_path data_path prompt_data prompt_dataset",
    "data.evaluation": "val_files eval_dataset test_file eval_files validation",
    "data.prompt.system": "system_prompt system_message",
    "data.questions.question": "prompt_key input_key prompt_column",
    "data.questions.answer": "label_key answer_key target_key",
    "model.path": "model_name model_name_or_path model_path pretrain pretrained_model base_model",
    "reward.function": "reward_fn reward_func reward_funcs reward_function custom_reward_function remote_rm_url",
    "reward.model": "reward_model_path reward_pretrain",
    "evaluation.every": "eval_steps eval_interval eval_freq test_freq eval_every",
    "checkpoint_every": "save_steps save_freq save_interval save_every checkpoint_interval",
    "mirror": "default_hdfs_dir remote_checkpoint_dir",
    "keep_checkpoints": "save_total_limit max_ckpt_num max_to_keep",
    "output": "output_dir save_path default_local_dir run_dir",
    "name": "run_name experiment_name exp_name project_name",
}
"""Where a setting stands, with what other frameworks call it."""
_OURS = {theirs: ours for ours, names in ELSEWHERE.items() for theirs in names.split()}


def sentence(item: Mapping[str, typing.Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in words: what was found; what was expected."""
    kind, found, message = item["type"], item["input"], item["msg"]
    if kind == "extra_forbidden":
        return _unknown(item["loc"], model)
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "missing":
        return "missing; expected a value"
    expected = f"expected {message[len('Input should be ') :]}" if message.startswith("Input should be ") else message
    if kind == "literal_error" and isinstance(found, str):
        expected += nearest(found, re.findall(r"'([^']*)'", expected))
    if kind == "string_type" and isinstance(found, int | float):
        expected += f": quote it, as in '{show(found)}'"
    if kind == "string_type" and isinstance(found, dict) and len(found) == 1 and set(found.values()) == {None}:
        expected += f": quote it, as in '{{{next(iter(found))}}}'"
    return f"found {show(found)}; {expected}"


def _unknown(loc: Loc, model: type[BaseModel]) -> str:
    """An unknown key: the nearest name beside it, or the section where the name belongs."""
    key, sections = str(loc[-1]), [model]
    if ours := _OURS.get(key.lower().replace("-", "_")):
        section, _, name = ours.rpartition(".")
        here = ".".join("N" if isinstance(part, int) else str(part) for part in loc[:-1])
        return f"unknown key; did you mean '{name}'?" + ("" if section == here else f" it belongs at {ours}")
    for part in (part for part in loc[:-1] if isinstance(part, str)):
        tagged = [s for s in sections if len(sections) > 1 and any(f.default == part for f in s.model_fields.values())]
        sections = tagged or _sections(sections[0].model_fields[part].annotation)
    beside = nearest(key, sections[0].model_fields)
    elsewhere = [path for path in dict.fromkeys(_paths(model)) if path.rpartition(".")[2] == key.replace("-", "_")]
    if not beside and elsewhere:
        beside = f"; it belongs at {' or '.join(elsewhere)}"
    return f"unknown key{beside or '; expected one of ' + ', '.join(sections[0].model_fields)}"


def takes_text(model: type[BaseModel], key: Sequence[str]) -> bool:
    """Whether the value of a key is text; the items of a list go by any name."""
    annotation: object = model
    for part in key:
        if typing.get_origin(annotation) in (tuple, list):
            annotation = typing.get_args(annotation)[0]
            continue
        fields = [section.model_fields[part] for section in _sections(annotation) if part in section.model_fields]
        if not fields:
            return False
        annotation = fields[0].annotation
    optional = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return annotation is str or (optional and str in typing.get_args(annotation))


def _sections(annotation: object) -> list[type[BaseModel]]:
    """The models inside an annotation such as `tuple[StageConfig, ...]` or `SourceConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in typing.get_args(annotation) for found in _sections(arg)]


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    out = []
    for name, field in model.model_fields.items():
        many = "N." if typing.get_origin(field.annotation) in (list, tuple) else ""
        inner = [path for section in _sections(field.annotation) for path in _paths(section, f"{prefix}{name}.{many}")]
        out += inner or [prefix + name]
    return out


def show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
