"""The training loop: one for pretraining and fine-tuning, deterministic in (seed, step), exact in resuming.

A step is: batch -> gradients (in micro-batches) -> clip -> optimizer. Nothing outside (model, optimizer, step) is
remembered between steps, so a checkpoint of these three continues to the same bits.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm_core.errors import Preempted, UserError
from lm_core.model.decoder import Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import resolve_device
from lm_core.store import Build
from lm_core.training.checkpoint import Checkpointer, State
from lm_core.training.config import OptimizationConfig
from lm_core.training.journal import Journal
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.schedule import learning_rate_fraction
from lm_core.training.throughput import flops_per_token, keep_freed_memory, matmul_peak, peak_rss_bytes

MAX_SKIPPED_IN_A_ROW = 5
DIVERGING_STEPS = 20
SMOOTHING = 0.95
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data: tokens and targets, both (B, T) int64; targets IGNORE where nothing is learnt."""

    tokens: Tensor
    targets: Tensor


@dataclass
class Figures:
    """The loop's memory besides tensors; part of every checkpoint."""

    tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    smoothed_loss: float = 0.0
    steps_above_first: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_val_loss: float = math.inf
    evaluations_without_gain: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class _Stopped(Exception):  # noqa: N818, no error: a request
    """SIGTERM arrived."""


def train(
    model: LanguageModel,
    batch_at: Callable[[int], Batch],
    config: OptimizationConfig,
    *,
    num_steps: int,
    build: Build,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    num_evaluations: int = 1,
) -> dict[str, Any]:
    """Train in place, resuming from `build.work` when a run was interrupted there.

    Args:
        batch_at: the whole batch of a step, a pure function of the step.
        evaluate: figures of the model on held-out data; "val_loss" among them serves early stopping.
        num_evaluations: evaluations, evenly spread; the last after the last step.

    Returns:
        num_parameters, num_steps, tokens, tokens_per_second, seconds, train_loss (nats, smoothed), skipped_steps,
        resumed_from_step, mfu, peak_rss_bytes, and the figures of the last evaluation.

    Raises:
        Preempted: on SIGTERM, after a checkpoint.
        UserError: when the loss stays non-finite or diverges.
    """
    torch.set_num_threads(build.runtime.num_threads)
    keep_freed_memory()
    run = _Run(model, batch_at, config, num_steps, build, evaluate, num_evaluations)
    with _sigterm(run.stop):
        return run.run()


class _Run:
    """One run of the loop: what it is given, and what it remembers."""

    def __init__(
        self,
        model: LanguageModel,
        batch_at: Callable[[int], Batch],
        config: OptimizationConfig,
        num_steps: int,
        build: Build,
        evaluate: Callable[[nn.Module], dict[str, float]] | None,
        num_evaluations: int,
    ) -> None:
        self.device = resolve_device(build.runtime.device)
        self.model = model.to(self.device)
        self.batch_at, self.config, self.num_steps, self.build = batch_at, config, num_steps, build
        self.evaluate = evaluate
        self.evaluation_steps = {round(num_steps * (i + 1) / num_evaluations) for i in range(num_evaluations)}
        self.optimizer = OptimizerSet(model, config)
        self.checkpoints = Checkpointer(build.work, _determinism(self.device, config))
        self.stop = threading.Event()
        self.figures = Figures()
        self.kept: dict[str, dict[str, Tensor]] = {}  # "ema", "best": copies of the weights
        self.step = 0

    def run(self) -> dict[str, Any]:
        self._resume()
        resumed_from = self.step
        self._prepare_model()
        self.journal = Journal(self.build.folder, self.build.work, self.step)
        last_checkpoint = time.monotonic()
        try:
            while self.step < self.num_steps and not self._out_of_patience():
                self._train_step()
                if self.step in self.evaluation_steps:
                    self._evaluate()
                if time.monotonic() - last_checkpoint > self.config.checkpoint_seconds:
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
        except _Stopped:
            self._checkpoint()
            self.checkpoints.wait()
            raise Preempted(f"stopped after step {self.step}; the same command resumes from there") from None
        finally:
            self.journal.close()
            self.checkpoints.wait()
        self._finish_weights()
        return self._statistics(resumed_from)

    # ---------------------------------------------------------------- one step

    def _train_step(self) -> None:
        started = time.perf_counter()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout: a function of the step alone
        batch = self.batch_at(self.step)
        loss = self._gradients(batch)
        if self.config.l1:
            _add_l1(self.model, self.config.l1)
        norm = clip_gradients(self.model, self.config.gradient_clip)
        fraction = learning_rate_fraction(self.config, self.step, self.num_steps)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(fraction, self.step)
            self._update_ema()
            self.figures.skipped_in_a_row = 0
        else:
            self._skip(loss, norm)
        self.step += 1
        self.figures.tokens += batch.tokens.numel()
        self.figures.seconds += time.perf_counter() - started
        self._watch(loss)
        self._report(loss, norm, fraction, batch.tokens.numel() / (time.perf_counter() - started))

    def _gradients(self, batch: Batch) -> float:
        """Accumulate the gradient of the mean loss over micro-batches; returns that loss."""
        rows = max(1, self.config.micro_batch_tokens // batch.tokens.shape[1])
        num_targets = int((batch.targets != IGNORE).sum())
        total = torch.zeros((), device=self.device)
        for start in range(0, len(batch.tokens), rows):
            if self.stop.is_set():
                self.optimizer.zero_grad()
                raise _Stopped
            tokens, targets = (t[start : start + rows].to(self.device) for t in (batch.tokens, batch.targets))
            loss = self.model.loss_sum(tokens, targets, label_smoothing=self.config.label_smoothing)
            loss = loss / max(1, num_targets)
            loss.backward()
            total += loss.detach()
        return float(total)

    def _skip(self, loss: float, norm: float) -> None:
        """Leave the weights as they are; a few such steps in a row end the run."""
        self.optimizer.zero_grad()
        self.figures.skipped += 1
        self.figures.skipped_in_a_row += 1
        if self.figures.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"the loss or its gradient is not finite at step {self.step} (loss {loss}, gradient norm {norm}), "
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row; lower learning_rate (now {self.config.learning_rate:g})"
            )

    def _watch(self, loss: float) -> None:
        """Smooth the loss, and end a run that has become worse than at its beginning for many steps."""
        figures = self.figures
        if not math.isfinite(loss):
            return
        if figures.first_loss is None:
            figures.first_loss = figures.smoothed_loss = loss
        figures.smoothed_loss = SMOOTHING * figures.smoothed_loss + (1 - SMOOTHING) * loss
        worse = figures.smoothed_loss > figures.first_loss * 1.1 + 0.25
        figures.steps_above_first = figures.steps_above_first + 1 if worse else 0
        if figures.steps_above_first >= DIVERGING_STEPS:
            raise UserError(
                f"training diverges: smoothed loss {figures.smoothed_loss:.3f} at step {self.step}, "
                f"{figures.first_loss:.3f} at the beginning; "
                f"lower learning_rate (now {self.config.learning_rate:g})"
            )

    def _report(self, loss: float, norm: float, fraction: float, tokens_per_second: float) -> None:
        figures = {
            "train_loss": loss if math.isfinite(loss) else None,
            "learning_rate": self.config.learning_rate * fraction,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": round(tokens_per_second, 1),
        }
        self.journal.write(self.step, tokens=self.figures.tokens, **figures)
        total = self.figures.tokens / self.step * self.num_steps
        known = {name: value for name, value in figures.items() if value is not None}
        self.build.progress(self.figures.tokens, total, "tokens", **known)

    # ---------------------------------------------------------------- evaluation, averages

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        # An evaluation has shapes of its own; compiling for them costs more than it saves.
        with self._averaged_weights(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.model.eval()
            metrics = self.evaluate(self.model)
            self.model.train()
        self.figures.metrics = dict(metrics)
        self.journal.write(self.step, **metrics)
        if not self.config.patience or "val_loss" not in metrics:
            return
        if metrics["val_loss"] < self.figures.best_val_loss:
            self.figures.best_val_loss, self.figures.evaluations_without_gain = metrics["val_loss"], 0
            self.kept["best"] = _copy(self.kept.get("ema") or self.model.state_dict())
        else:
            self.figures.evaluations_without_gain += 1

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.figures.evaluations_without_gain

    def _update_ema(self) -> None:
        if not self.config.ema_decay:
            return
        weights = self.model.state_dict()
        average = self.kept.setdefault("ema", _copy(weights))
        # A young average forgets faster, so that the initial weights leave it (Karras et al. 2023, appendix C.1).
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in weights.items():
            average[name].lerp_(tensor, 1 - decay)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The model with its moving average in place of its weights, for the time of an evaluation."""
        if "ema" not in self.kept:
            yield
            return
        own = _copy(self.model.state_dict())
        self.model.load_state_dict(self.kept["ema"])
        yield
        self.model.load_state_dict(own)

    def _finish_weights(self) -> None:
        """What the run leaves: the best weights under early stopping, else the average, else the last."""
        final = self.kept.get("best") or self.kept.get("ema")
        if final:
            self.model.load_state_dict(final)
        self.model.eval()

    # ---------------------------------------------------------------- beginning and end

    def _prepare_model(self) -> None:
        self.model.train()
        self.model.compute_dtype = DTYPES[self.config.precision]
        if isinstance(self.model, Decoder):
            self.model.activation_checkpointing = self.config.activation_checkpointing
        if self.config.compile:
            for block in self.model.blocks():
                block.compile()

    def _resume(self) -> None:
        state = self.checkpoints.newest()
        if state is None:
            return
        try:
            self.model.load_state_dict(dict(state.tensors["model"]))
            self.optimizer.load_state(state.tensors.get("optimizer", {}))
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint in {self.build.work} is of another model ({reason}); remove it") from None
        self.kept = {g: _on(t, self.device) for g, t in state.tensors.items() if g in ("ema", "best")}
        self.figures = Figures(**state.figures)
        self.step = state.step

    def _checkpoint(self) -> None:
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state(), **self.kept}
        self.checkpoints.save(State(self.step, tensors, vars(self.figures)))

    def _statistics(self, resumed_from: int) -> dict[str, Any]:
        figures = self.figures
        rate = figures.tokens / figures.seconds if figures.seconds else 0.0
        peak = matmul_peak(self.device.type, DTYPES[self.config.precision])
        length = self.batch_at(0).tokens.shape[1]
        return {
            "num_parameters": self.model.num_parameters(),
            "num_steps": self.step,
            "tokens": figures.tokens,
            "tokens_per_second": round(rate, 1),
            "seconds": round(figures.seconds, 3),
            "train_loss": figures.smoothed_loss,
            "skipped_steps": figures.skipped,
            "resumed_from_step": resumed_from,
            "mfu": round(rate * flops_per_token(self.model, length) / peak, 4),
            "matmul_peak_flops": round(peak),
            "peak_rss_bytes": peak_rss_bytes(),
            **figures.metrics,
        }


def _determinism(device: torch.device, config: OptimizationConfig) -> dict[str, Any]:
    """What must be equal for two runs to give the same bits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    settings = config.model_dump(mode="json")
    return {"torch": torch.__version__, "device": device.type, "processor": name, "num_threads": threads, **settings}


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale the gradients down to a norm of at most `largest` (0: leave them); returns their norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(nn.utils.get_total_norm(gradients)) if gradients else 0.0
    if largest and norm > largest and math.isfinite(norm):
        torch._foreach_mul_(gradients, largest / norm)
    return norm


def _add_l1(model: nn.Module, l1: float) -> None:
    """Subgradient of l1 * sum |w| over the matrices."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.ndim >= 2:
            parameter.grad.add_(parameter.detach().sign(), alpha=l1)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _on(tensors: Any, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@contextmanager
def _sigterm(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM ask for a stop; only the main thread may listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
