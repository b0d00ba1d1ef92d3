"""What a run takes: speed, share of the machine's peak, energy and price, beside what was foretold."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from lm_core.model.language_model import LanguageModel
from lm_core.runtime import Runtime
from lm_core.training.config import OptimizationConfig
from lm_core.training.forecast import Costs, Forecast, Workload, costs_of, forecast
from lm_core.training.throughput import flops_per_token, matmul_peak, peak_rss_bytes


class Meter:
    """Turns tokens and seconds into the figures that people ask for.

    Attributes:
        forecast: what the run should take; known after `foretell`.
    """

    forecast: Forecast

    def __init__(
        self,
        runtime: Runtime,
        model: LanguageModel,
        device: torch.device,
        config: OptimizationConfig,
        num_processes: int,
        length: int,
    ) -> None:
        self.model, self.device, self.config, self.num_processes = model, device, config, num_processes
        self.length = length
        self.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self.costs: Costs = costs_of(
            runtime.tariff, gpu=self.gpu, num_devices=num_processes, num_threads=runtime.num_threads
        )
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.peak = matmul_peak(device.type, dtype)
        self.flops_per_token = flops_per_token(model, length)

    def foretell(self, tokens: int, evaluation_tokens: int) -> None:
        """Make the forecast of a run over so many tokens."""
        work = Workload(self.model.config, self.model.vocab_size, self.length, tokens, evaluation_tokens)
        self.forecast = forecast(
            work,
            self.config,
            self.costs,
            peak_flops=self.peak,
            num_devices=self.num_processes,
            gpu=self.gpu is not None,
            process_bytes=psutil.Process().memory_info().rss,
        )

    def headline(self) -> dict[str, float]:
        """The forecast in the few figures that stand in a line of progress."""
        said = {
            "forecast_seconds": self.forecast.seconds,
            "forecast_memory_mb": self.forecast.memory_bytes / 1e6,
            "forecast_disk_mb": self.forecast.disk_bytes / 1e6,
            "forecast_cost_usd": self.forecast.cost_usd,
        }
        return {name: float(f"{value:.3g}") for name, value in said.items()}

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilisation: the share of the measured matrix-product peak that does the model's arithmetic."""
        return tokens_per_second * self.flops_per_token / (self.peak * self.num_processes)

    def live(self, tokens_per_second: float, seconds: float) -> dict[str, float]:
        """Figures of a step, for whoever looks on."""
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": round(self.mfu(tokens_per_second), 4),
            "energy_kwh": round(self.costs.energy_kwh(seconds), 8),
            "cost_usd": round(self.costs.usd(seconds), 8),
        }

    def statistics(self, tokens: int, seconds: float) -> dict[str, Any]:
        """What the run took, and what was foretold."""
        rate = tokens / seconds if seconds else 0.0
        memory = {"peak_rss_bytes": peak_rss_bytes()}
        if self.gpu is not None:
            memory["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return {
            "seconds": round(seconds, 3),
            **self.live(rate, seconds),
            "matmul_peak_flops": round(self.peak),
            **memory,
            **self.forecast.figures(),
        }
