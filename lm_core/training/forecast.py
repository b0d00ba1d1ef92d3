"""What a training run will take, said before it starts: seconds, memory, disk, energy, price. Loads no torch.

Seconds are operations over the reachable part of the machine's matrix-product peak. Everything assumed is a constant
here or a field of `Tariff`; the statistics of a run hold the forecast beside what it came to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from lm_core.runtime import Runtime, Tariff
from lm_core.training.config import ModelConfig, OptimizationConfig

# Share of the matrix-product peak that a step reaches on two cores, by parameters: measured, between them interpolated.
CPU_EFFICIENCY = ((3.7e4, 0.12), (1.3e6, 0.48), (5.9e6, 0.69), (1.57e7, 0.71))
GPU_EFFICIENCY = 0.4  # assumed
BF16_OVER_FP32 = 2.6  # peak of matrix products on a CPU that has them
PROCESS_BYTES = 900_000_000  # Python, torch, and what the stages before have loaded, where it is not yet known
COMPILE_SECONDS = 12.0
CHECKPOINTS_ON_DISK = 4  # two, and two anchors that may be older

WATTS_PER_CPU_THREAD = 12.0
PRICE_PER_KWH = 0.30
# name: (watts, USD per rented hour, bf16 peak); makers' data and common prices, to be replaced by one's own tariff.
GPUS = {
    "H200": (700.0, 3.8, 989e12),
    "H100": (700.0, 3.0, 989e12),
    "A100": (400.0, 1.8, 312e12),
    "L40S": (350.0, 1.0, 362e12),
    "4090": (450.0, 0.5, 165e12),
    "L4": (72.0, 0.7, 121e12),
    "T4": (70.0, 0.4, 65e12),
}
ASSUMED_GPU = "H100"


@dataclass(frozen=True)
class Costs:
    """What the devices of a run take by the second."""

    watts: float
    price_per_kwh: float
    price_per_hour: float
    assumptions: str

    def energy_kwh(self, seconds: float) -> float:
        """Energy of all devices."""
        return self.watts * seconds / 3.6e6

    def usd(self, seconds: float) -> float:
        """Rent of the devices; without rent, the price of the energy."""
        rent = self.price_per_hour * seconds / 3600
        return rent or self.price_per_kwh * self.energy_kwh(seconds)


def costs_of(tariff: Tariff, *, gpu: str | None, num_devices: int, num_threads: int) -> Costs:
    """The tariff, completed by the assumptions of this module.

    Args:
        gpu: name of the GPU as its driver says it; None for a CPU.
        num_threads: CPU threads of one process.
    """
    watts, per_hour = WATTS_PER_CPU_THREAD * num_threads, 0.0
    if gpu is not None:
        watts, per_hour, _ = next((GPUS[name] for name in GPUS if name in gpu), GPUS["A100"])
    watts = tariff.watts if tariff.watts is not None else watts
    per_hour = tariff.price_per_hour if tariff.price_per_hour is not None else per_hour
    per_kwh = tariff.price_per_kwh if tariff.price_per_kwh is not None else PRICE_PER_KWH
    said = f"{watts:g} W each, " + (f"{per_hour:g} USD per hour" if per_hour else f"{per_kwh:g} USD per kWh")
    return Costs(watts * num_devices, per_kwh, per_hour * num_devices, f"{num_devices} x {gpu or 'CPU'}, {said}")


@dataclass(frozen=True)
class Workload:
    """The model and how many tokens go through it.

    Attributes:
        length: T, tokens of a window.
        tokens: tokens to train on.
        evaluation_tokens: tokens scored in all evaluations together.
    """

    model: ModelConfig
    vocab_size: int
    length: int
    tokens: int
    evaluation_tokens: int = 0

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with."""
        model = self.model
        attention = 2 * model.d_model * model.width_of_heads * (model.num_heads + model.num_kv_heads)
        feed_forward = (3 if model.kind == "decoder" else 2) * model.d_model * model.d_ff
        return model.num_layers * (attention + feed_forward) + self.vocab_size * model.d_model

    @property
    def num_parameters(self) -> int:
        """All of them; the architecture's own count, without building it."""
        model, embedding = self.model, self.vocab_size * self.model.d_model
        if model.kind == "decoder":
            norms = 2 * model.d_model + (2 * model.width_of_heads if model.qk_norm else 0)
            others = model.num_layers * norms + model.d_model
        else:  # biases of attention and feed-forward layer, LayerNorms with biases
            others = model.num_layers * (9 * model.d_model + model.d_ff) + 2 * model.d_model
        return self.matrix_weights + others + (0 if model.tie_embeddings else embedding)

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, as `throughput.flops_per_token` counts them."""
        attention = self.model.num_layers * self.model.num_heads * self.model.width_of_heads * self.length
        return 6.0 * (self.matrix_weights + attention)

    @property
    def flops(self) -> float:
        """Of the whole run; an evaluation is a forward pass, a third."""
        return self.flops_per_token * (self.tokens + self.evaluation_tokens / 3)


@dataclass(frozen=True)
class Forecast:
    """What a run will take. Bytes of memory are of one process: of the host on a CPU, of the GPU on a GPU."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    energy_kwh: float
    cost_usd: float
    assumptions: str

    def figures(self) -> dict[str, float | str]:
        """For statistics and journals, next to the figures they foretell."""
        return {
            "forecast_seconds": round(self.seconds, 1),
            "forecast_memory_bytes": self.memory_bytes,
            "forecast_disk_bytes": self.disk_bytes,
            "forecast_energy_kwh": round(self.energy_kwh, 6),
            "forecast_cost_usd": round(self.cost_usd, 6),
            "cost_assumptions": self.assumptions,
        }


def forecast(
    work: Workload,
    config: OptimizationConfig,
    costs: Costs,
    *,
    peak_flops: float,
    num_devices: int = 1,
    gpu: bool,
    process_bytes: int = PROCESS_BYTES,
) -> Forecast:
    """Seconds, memory, disk, energy and price of a training run.

    Args:
        peak_flops: operations per second of a large matrix product on one device, in the precision of the run.
        process_bytes: what the process holds before it trains; part of the memory on a CPU.
    """
    efficiency = GPU_EFFICIENCY if gpu else cpu_efficiency(work.num_parameters)
    seconds = work.flops / (peak_flops * efficiency * num_devices) + (COMPILE_SECONDS if config.compile else 0.0)
    state = optimizer_bytes(work, config)
    weights = 4 * work.num_parameters
    copies = 1 + bool(config.ema_decay or config.average_checkpoints) + bool(config.patience)
    disk = CHECKPOINTS_ON_DISK * (copies * weights + state) + weights
    # A checkpoint is copied before it is written, on the host; gradients stand beside the weights.
    memory = (copies + 1) * weights + state + activation_bytes(work, config)
    if not gpu:
        memory += process_bytes + copies * weights + state
    return Forecast(
        seconds, round(memory), round(disk), costs.energy_kwh(seconds), costs.usd(seconds), costs.assumptions
    )


def cpu_efficiency(num_parameters: int) -> float:
    """Share of the peak, interpolated between the sizes that were measured."""
    sizes, shares = zip(*CPU_EFFICIENCY, strict=True)
    return float(np.interp(np.log(num_parameters), np.log(sizes), shares))


def optimizer_bytes(work: Workload, config: OptimizationConfig) -> int:
    """Moments of the optimizer: two for Adam, one for momentum, of which Muon takes the matrices of the blocks."""
    in_blocks = work.matrix_weights - work.vocab_size * work.model.d_model
    rest = work.num_parameters - in_blocks
    moments = {
        "sgd": bool(config.momentum) * (in_blocks + rest),
        "rmsprop": (1 + bool(config.momentum)) * (in_blocks + rest),
    }
    if config.uses_muon:
        return 4 * (in_blocks + 2 * rest)
    return 4 * moments.get(config.optimizer, 2 * (in_blocks + rest))


def activation_bytes(work: Workload, config: OptimizationConfig) -> int:
    """What the backward pass of one micro-batch needs of the forward pass, and the gradients of its loss."""
    model, width = work.model, 2 if config.precision == "bf16" else 4
    per_layer = 4 * 4 * model.d_model  # normalised streams, kept in fp32
    heads = (3 * model.num_heads + 4 * model.num_kv_heads) * model.width_of_heads  # queries, keys, values, rotated too
    per_layer += width * (2 * model.d_model + heads + 4 * model.d_ff)  # inputs of products, gates
    if not config.activation_checkpointing:
        per_layer += width * 2 * model.num_heads * min(work.length, 512)  # attention weights, short contexts
    layers = 1 if config.activation_checkpointing else model.num_layers
    per_token = layers * per_layer + 4 * model.d_model * (model.num_layers if layers == 1 else 3)
    tokens = max(work.length, config.micro_batch_tokens)
    return tokens * per_token + 4 * 2 * work.vocab_size * model.d_model


def numpy_peak(precision: str) -> float:
    """Operations per second of a matrix product here, without torch: fp32 measured, bf16 by the usual ratio."""
    a = np.ones((768, 768), np.float32)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 768**3 / (time.perf_counter() - started))
    return best * (BF16_OVER_FP32 if precision == "bf16" else 1.0)


def planned(work: Workload, config: OptimizationConfig, runtime: Runtime, *, on_gpu: bool) -> Forecast:
    """The forecast for a machine of which no more is known than its kind: what `millrace plan` says."""
    gpu = ASSUMED_GPU if on_gpu else None
    devices, threads = runtime.num_processes, max(1, runtime.num_threads // runtime.num_processes)
    peak = GPUS[ASSUMED_GPU][2] if on_gpu else numpy_peak(config.precision) / runtime.num_processes
    costs = costs_of(runtime.tariff, gpu=gpu, num_devices=devices, num_threads=threads)
    return forecast(work, config, costs, peak_flops=peak, num_devices=devices, gpu=on_gpu)
