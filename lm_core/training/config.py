"""Configuration of tokenizer, tokens, model and training. Loads neither torch nor pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lm_core.config import Added, Config, Incidental


class TokenizerConfig(Config):
    """How the tokenizer is trained. All kinds work on bytes, so that any text comes back unchanged."""

    algorithm: Literal["bpe", "unigram", "wordpiece"] = Field("bpe", description="Subword algorithm.")
    vocab_size: int = Field(4096, ge=300, le=262_144, description="Entries, control tokens and 256 bytes included.")
    max_train_bytes: int = Field(
        24_000_000, ge=10_000, description="Text to learn the merges from: an even sample of the training documents."
    )
    normalisation: Literal["none", "nfc", "nfkc"] = Field(
        "none", description="Unicode form the text is brought to; none keeps every byte."
    )
    split_digits: bool = Field(
        True, description="Every digit is a token of its own, so that numbers are spelled alike."
    )
    split_cjk: bool = Field(False, description="Every Chinese character is cut off from its neighbours before merging.")


class TokenizeConfig(Config):
    """How documents become training windows."""

    context_length: int = Field(256, ge=8, le=131_072, description="Tokens the model sees at once (T).")
    windows_per_shard: int = Field(65_536, ge=1, description="Windows in one .bin file.")


# Those with an optimizer and a learning rate of their own for the matrices of the blocks.
MUON_OPTIMIZERS = ("muon", "torch_muon")


class ModelConfig(Config):
    """Architecture. Vocabulary size and context length follow from the data."""

    kind: Literal["decoder", "vanilla"] = Field(
        "decoder", description="decoder: the layout of Qwen3. vanilla: nn.TransformerEncoder with sinusoidal positions."
    )
    num_layers: int = Field(4, ge=1, le=256, description="Blocks.")
    d_model: int = Field(192, ge=8, le=16_384, description="Width of the residual stream (D).")
    num_heads: int = Field(3, ge=1, le=256, description="Query heads (H).")
    num_kv_heads: int = Field(3, ge=1, le=256, description="Key and value heads; fewer than num_heads groups queries.")
    head_width: int = Field(
        0, ge=0, le=1024, description="Width of a head (K), an even number; 0: d_model / num_heads."
    )
    d_ff: int = Field(512, ge=8, le=65_536, description="Width of the feed-forward layer.")
    activation: Literal["silu", "gelu", "relu"] = Field(
        "silu", description="Activation of the feed-forward layer; of vanilla gelu, when it is not given."
    )
    qk_norm: bool = Field(True, description="RMSNorm on queries and keys (Qwen3); off gives the layout of Llama.")
    tie_embeddings: bool = Field(True, description="Input and output embeddings are one matrix.")
    rope_base: float = Field(10_000.0, gt=1, description="Base of the rotary frequencies.")
    norm_epsilon: float = Field(1e-6, gt=0, lt=1e-2, description="Added to the variance in every normalisation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on residual branches while training.")
    init: Literal["normal", "uniform", "scaled", "zero_output"] = Field(
        "zero_output",
        description="Weights: normal or uniform of init_std; scaled: output projections divided by sqrt(2 layers) "
        "(GPT-2); zero_output: output projections start at zero, so that every block starts as the identity.",
    )
    init_std: float = Field(0.02, gt=0, le=1, description="Standard deviation of the initial weights.")

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("kind") == "vanilla" and "activation" not in values:
            return {**values, "activation": "gelu"}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "vanilla":
            self._check_vanilla()
        if not self.head_width and (self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2):
            raise ValueError(f"num_heads={self.num_heads} must divide d_model={self.d_model} into heads of even width")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        return self

    def _check_vanilla(self) -> None:
        needs_decoder = {
            f"head_width={self.head_width}": self.head_width and "vanilla divides d_model among its heads",
            f"activation={self.activation}": self.activation == "silu" and "nn.TransformerEncoder knows gelu and relu",
            f"num_kv_heads={self.num_kv_heads}": self.num_kv_heads != self.num_heads
            and "vanilla has no grouped queries",
            f"qk_norm={self.qk_norm}": not self.qk_norm and "vanilla has no norm of queries and keys to switch off",
            f"rope_base={self.rope_base:g}": self.rope_base != type(self).model_fields["rope_base"].default
            and "vanilla has sinusoidal positions",
        }
        for setting, why in needs_decoder.items():
            if why:
                raise ValueError(f"{setting} needs kind=decoder; {why}")

    @property
    def width_of_heads(self) -> int:
        """Width of a head (K)."""
        return self.head_width or self.d_model // self.num_heads


class OptimizationConfig(Config):
    """How weights move, for pretraining and fine-tuning alike."""

    optimizer: Literal["sgd", "rmsprop", "adam", "adamw", "muon", "torch_muon"] = Field(
        "muon",
        description="muon: Muon, in parts, for the matrices of the blocks, AdamW for everything else; "
        "torch_muon: the same with torch.optim.Muon.",
    )
    learning_rate: float = Field(5e-3, gt=0, description="Peak learning rate (with Muon: of embeddings and norms).")
    muon_learning_rate: float = Field(0.02, gt=0, description="Peak learning rate of the block matrices (Muon only).")
    muon_in_parts: bool = Field(
        True, description="Muon takes heads one by one and the feed-forward layer in parts: far less work; off: whole."
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of sgd, rmsprop and Muon.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of Adam's first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of Adam's second moment.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty, decoupled in adamw and Muon; matrices only.")
    l1: float = Field(0.0, ge=0, le=1, description="L1 penalty on all matrices.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Probability spread over the whole vocabulary.")
    gradient_clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 switches clipping off.")
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = Field(
        "linear", description="Course of the learning rate after warmup."
    )
    warmup_fraction: float = Field(0.04, ge=0, le=1, description="Share of the steps in which the rate rises.")
    decay_fraction: float = Field(0.3, gt=0, le=1, description="Share of the steps that decay (warmup_stable_decay).")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, as a share of the peak.")
    batch_tokens: int = Field(4096, ge=8, description="Tokens of one optimizer step.")
    micro_batch_tokens: int = Field(4096, ge=8, description="Tokens that pass through the model at once.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of matrix products; master weights and optimizer state are always fp32."
    )
    compile: bool = Field(False, description="torch.compile for each block.")
    activation_checkpointing: bool = Field(
        False, description="Recompute the blocks' activations in the backward pass: less memory, a third more work."
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Exponential moving average of the weights; 0: off.")
    average_checkpoints: int = Field(
        0, ge=0, le=1000, description="Moments near the end whose weights are averaged into the result; 0: off."
    )
    average_fraction: float = Field(
        0.2, gt=0, le=1, description="Share of the steps, the last ones, over which those moments are spread."
    )
    patience: int = Field(0, ge=0, description="Evaluations without improvement before training stops; 0: never.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initial weights, data order and dropout.")
    checkpoint_seconds: float = Incidental(20.0, gt=0, description="Seconds between two checkpoints.")

    @property
    def uses_muon(self) -> bool:
        """Whether the matrices of the blocks have an optimizer and a learning rate of their own."""
        return self.optimizer in MUON_OPTIMIZERS

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = type(self).model_fields
        without_effect = {
            "muon_learning_rate": self.uses_muon,
            "muon_in_parts": self.optimizer == "muon",
            "momentum": self.optimizer in ("sgd", "rmsprop") or self.uses_muon,
            "beta1": self.optimizer not in ("sgd", "rmsprop"),
            "beta2": self.optimizer not in ("sgd", "rmsprop"),
            "decay_fraction": self.schedule == "warmup_stable_decay",
            "final_fraction": self.schedule != "constant",
            "average_checkpoints": not self.ema_decay,
            "average_fraction": self.average_checkpoints > 0,
        }
        for name, has_effect in without_effect.items():
            if not has_effect and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} has no effect with optimizer={self.optimizer}, schedule={self.schedule}, "
                    f"ema_decay={self.ema_decay:g}, average_checkpoints={self.average_checkpoints}"
                )
        if self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens={self.micro_batch_tokens} must not exceed batch_tokens={self.batch_tokens}"
            )
        return self


class PretrainConfig(Config):
    """Pretraining: the architecture, how long, and how it is optimised."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="Architecture.")
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig, description="Optimizer and schedule.")
    train_tokens: int = Field(2_000_000, ge=8, description="Tokens to train on; the data are repeated when shorter.")
    validation_tokens: int = Field(200_000, ge=8, description="Validation tokens scored at each evaluation, at most.")
    num_evaluations: int = Field(4, ge=1, le=1000, description="Evaluations, evenly spread; the last is at the end.")
    attention_within_documents: bool = Added(
        False, description="In a window, tokens see their own document only, not those packed before it."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_within_documents and self.model.kind != "decoder":
            raise ValueError(f"attention_within_documents needs model.kind=decoder, not {self.model.kind}")
        if self.optimization.activation_checkpointing and self.model.kind != "decoder":
            raise ValueError(f"activation_checkpointing needs model.kind=decoder, not {self.model.kind}")
        return self
