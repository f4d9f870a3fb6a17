"""nanotron's config: rendered from the recipe, and checked before anything is trained.

nanotron silently turns a `model_config` with a mistyped key into a plain dict, and silently begins again when the
checkpoint to resume from does not exist. `check` refuses both.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# nanotron has its own environment, which the type checker does not see

from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.errors import ConfigError, InternalError
from stages.train.init_weights import STD
from stages.train.nanotron.job import TrainingJob


def render(job: TrainingJob, folder: Path, eos: int, checkpoint: Path | None) -> dict[str, Any]:
    """The config in nanotron 0.2's sections; `data` is left out, since the loader is ours."""
    recipe, layout, shape = job.recipe, job.layout, job.recipe.architecture
    return {
        "general": {"project": "cosmopedia", "run": folder.name, "seed": recipe.seed},
        "checkpoints": {
            "checkpoints_path": str(folder / "checkpoints"),
            "checkpoint_interval": recipe.steps + 1,  # the worker decides when
            "resume_checkpoint_path": str(checkpoint) if checkpoint else None,
            "checkpoints_path_is_shared_file_system": True,
        },
        "logging": {"log_level": "warning", "log_level_replica": "warning", "iteration_step_info_interval": 1},
        "model": {
            "dtype": "bfloat16" if job.precision == "bf16" else "float32",
            "init_method": {"std": STD},
            "model_config": {
                "bos_token_id": eos,
                "eos_token_id": eos,
                "hidden_size": shape.width,
                "intermediate_size": shape.intermediate,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "max_position_embeddings": recipe.sequence,
                "vocab_size": shape.vocabulary,
                "tie_word_embeddings": shape.tied_embeddings,
                "rms_norm_eps": 1e-6,
                "initializer_range": STD,
                "is_llama_config": True,
            },
        },
        "tokenizer": {"tokenizer_name_or_path": None},
        "tokens": {
            "sequence_length": recipe.sequence,
            "train_steps": recipe.steps,
            "micro_batch_size": job.micro_batch,
            "batch_accumulation_per_replica": job.accumulation,
        },
        "optimizer": {
            "zero_stage": 1 if layout.dp > 1 else 0,
            "weight_decay": recipe.weight_decay,
            "clip_grad": recipe.gradient_clip,
            "accumulate_grad_in_fp32": job.precision == "bf16",  # in fp32 the gradients are fp32 by themselves
            "adam_eps": recipe.epsilon,
            "adam_beta1": recipe.betas[0],
            "adam_beta2": recipe.betas[1],
            "torch_adam_is_fused": True,
            "learning_rate_scheduler": {
                "learning_rate": recipe.learning_rate,
                "lr_warmup_steps": recipe.warmup_steps,
                "lr_warmup_style": "linear",
                "lr_decay_style": "cosine",
                "min_decay_lr": recipe.learning_rate * recipe.final_rate_share,
            },
        },
        "parallelism": {
            "dp": layout.dp,
            "tp": layout.tp,
            "pp": layout.pp,
            "pp_engine": "1f1b",
            "tp_mode": "ALL_REDUCE",
            "tp_linear_async_communication": False,
        },
    }


def write(path: Path, config: dict[str, Any]) -> None:
    """The config as nanotron reads it."""
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def check(config: Any, checkpoint: Path | None) -> None:
    """Refuse a config that nanotron understood differently from what was written; `config` is nanotron's `Config`."""
    from nanotron.config import LlamaConfig

    model = config.model.model_config
    if not isinstance(model, LlamaConfig):
        known = set(LlamaConfig.__dataclass_fields__)
        wrong = ", ".join(sorted(set(model) - known)) or "a value's type"
        raise InternalError(f"nanotron does not recognise model_config as a Llama's: {wrong}; please report it")
    if checkpoint is not None and not (checkpoint / "model_config.json").is_file():
        raise ConfigError(f"{checkpoint} is no checkpoint of nanotron, and training would begin again; remove it")
