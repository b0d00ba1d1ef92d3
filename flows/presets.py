"""Presets: functions that return a whole configuration. `millrace run --preset NAME` starts from one."""

from __future__ import annotations

from collections.abc import Callable

from flows.config import PipelineConfig, RegistryConfig
from lm_core.corpus.config import CollectConfig, InstalledPackages
from lm_core.downstream.config import EvaluateConfig, EvaluateTaskConfig, FinetuneConfig, PrepareConfig
from lm_core.errors import UserError
from lm_core.runtime import fast_precision
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig, TokenizeConfig, TokenizerConfig

# Of the block matrices. Bits per byte of `laptop` at rates 0.007, 0.01, 0.014, 0.02: 1.836, 1.822, 1.817, 1.828.
SMALL_MODELS_RATE = 0.014


def smoke() -> PipelineConfig:
    """The whole pipeline in seconds, for tests and a first look: a few packages, two layers, tens of steps."""
    return PipelineConfig(
        collect=CollectConfig(
            sources=(InstalledPackages(max_package_bytes=120_000, packages=("numpy", "pydantic", "click", "rich")),)
        ),
        prepare=PrepareConfig(
            max_train_items=64, max_validation_items=16, max_test_items=24, min_train_items=16, min_test_items=5,
            num_topics=3,
        ),
        train_tokenizer=TokenizerConfig(vocab_size=512, max_train_bytes=200_000),
        tokenize=TokenizeConfig(context_length=64),
        pretrain=PretrainConfig(
            model=ModelConfig(num_layers=2, d_model=32, num_heads=1, num_kv_heads=1, d_ff=64),
            optimization=OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024),
            train_tokens=40_960,
            validation_tokens=8_192,
            num_evaluations=2,
        ),
        finetune=FinetuneConfig(
            max_steps=8,
            optimization=OptimizationConfig(
                learning_rate=2e-3, muon_learning_rate=0.01, batch_tokens=1024, micro_batch_tokens=1024
            ),
        ),
        evaluate=EvaluateConfig(max_documents=24, baseline_train_bytes=100_000, num_resamples=200, ngram_order=3),
        evaluate_task=EvaluateTaskConfig(max_items=16, max_new_tokens=12, num_resamples=200),
        registry=RegistryConfig(model_name="millrace-smoke"),
    )  # fmt: skip


def laptop() -> PipelineConfig:
    """Under six minutes on two cores, from the documentation of the packages installed on this very machine."""
    precision = fast_precision()
    return PipelineConfig(
        collect=CollectConfig(sources=(InstalledPackages(max_package_bytes=600_000),)),
        pretrain=PretrainConfig(
            model=ModelConfig(num_layers=4, d_model=192, num_heads=3, num_kv_heads=3, d_ff=512),
            optimization=OptimizationConfig(muon_learning_rate=SMALL_MODELS_RATE, precision=precision),
            train_tokens=1_200_000,
            validation_tokens=65_536,
            num_evaluations=4,
        ),
        finetune=FinetuneConfig(
            max_steps=24,
            optimization=OptimizationConfig(
                learning_rate=2e-3, muon_learning_rate=0.01, warmup_fraction=0.1, precision=precision
            ),
        ),
        prepare=PrepareConfig(max_train_items=1200, max_test_items=200, max_prompt_chars=280),
        evaluate=EvaluateConfig(max_documents=200, baseline_train_bytes=2_000_000, ngram_order=3),
        evaluate_task=EvaluateTaskConfig(max_items=200, max_new_tokens=32),
    )


def real() -> PipelineConfig:
    """For a folder of one's own text (`--data DIR`): a few million parameters, about twenty minutes on two cores."""
    precision = fast_precision()
    return PipelineConfig(
        train_tokenizer=TokenizerConfig(vocab_size=8192),
        pretrain=PretrainConfig(
            model=ModelConfig(num_layers=6, d_model=256, num_heads=4, num_kv_heads=4, d_ff=688),
            optimization=OptimizationConfig(muon_learning_rate=SMALL_MODELS_RATE, precision=precision),
            train_tokens=6_000_000,
            validation_tokens=131_072,
            num_evaluations=8,
        ),
        finetune=FinetuneConfig(
            num_epochs=2.0,
            max_steps=100,
            optimization=OptimizationConfig(
                learning_rate=2e-3, muon_learning_rate=0.01, warmup_fraction=0.1, precision=precision
            ),
        ),
    )


def gpu() -> PipelineConfig:
    """A model of GPT-2-small class for one GPU: bf16, compiled, half a million tokens a step."""
    return PipelineConfig(
        collect=CollectConfig(sources=(InstalledPackages(max_package_bytes=50_000_000),)),
        train_tokenizer=TokenizerConfig(vocab_size=32_768, max_train_bytes=200_000_000),
        tokenize=TokenizeConfig(context_length=1024),
        pretrain=PretrainConfig(
            model=ModelConfig(num_layers=12, d_model=768, num_heads=12, num_kv_heads=12, d_ff=2048),
            # Whole matrices: they cost next to nothing in steps so long, and cutting them was measured in small models.
            optimization=OptimizationConfig(
                optimizer="torch_muon", precision="bf16", compile=True, batch_tokens=524_288, micro_batch_tokens=65_536
            ),
            train_tokens=2_000_000_000,
            validation_tokens=2_097_152,
            num_evaluations=20,
        ),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {"smoke": smoke, "laptop": laptop, "real": real, "gpu": gpu}


def preset(name: str) -> PipelineConfig:
    """The configuration of a preset.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]()
