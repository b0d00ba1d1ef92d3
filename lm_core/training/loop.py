"""The training loop: one for pretraining and fine-tuning, deterministic in (seed, step), exact in resuming.

A step is: batch -> gradients (in micro-batches) -> clip -> optimizer. Nothing outside (model, optimizer, averages,
step) is remembered between steps, so a checkpoint of these continues to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lm_core.config import identity_of
from lm_core.errors import Preempted, UserError
from lm_core.model.decoder import Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import resolve_device
from lm_core.store import Build
from lm_core.training.averages import WeightAverages
from lm_core.training.checkpoint import Checkpointer, State
from lm_core.training.config import OptimizationConfig
from lm_core.training.course import MAX_ROLLBACKS, MAX_SKIPPED_IN_A_ROW, Course, Figures
from lm_core.training.distributed import World, whole_tensor
from lm_core.training.journal import Journal
from lm_core.training.meter import Meter
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.preemption import Stopped, StopRequest
from lm_core.training.schedule import learning_rate_fraction
from lm_core.training.throughput import keep_freed_memory

ANCHORS, MIN_STEPS_BETWEEN_ANCHORS = 16, 50
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data: tokens and targets, both (B, T) int64; targets IGNORE where nothing is learnt.

    Attributes:
        beside: what a model is given of each row beside its tokens, (B, ...): see its `loss_sum`.
    """

    tokens: Tensor
    targets: Tensor
    beside: Tensor | None = None

    def share(self, world: World) -> Batch:
        """The rows that one of several processes works on; filled up with rows of which nothing is learnt."""
        beside = None if self.beside is None else world.share(self.beside, 0)
        return Batch(world.share(self.tokens, 0), world.share(self.targets, IGNORE), beside)


def train(
    model: LanguageModel,
    batch_at: Callable[[int], Batch],
    config: OptimizationConfig,
    *,
    num_steps: int,
    build: Build,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    num_evaluations: int = 1,
    evaluation_tokens: int = 0,
    before_step: Callable[[int], None] = lambda step: None,
    rate_of: Callable[[str], float] | None = None,
) -> dict[str, Any]:
    """Train in place, resuming from `build.work` when a run was interrupted there.

    Args:
        batch_at: the whole batch of a step, a pure function of the step.
        evaluate: figures of the model on held-out data; "val_loss" among them serves early stopping.
        num_evaluations: evaluations, evenly spread; the last after the last step.
        evaluation_tokens: tokens of one evaluation, for the forecast.
        before_step: called with each step before its gradients: what it sets must follow from the step alone.
        rate_of: name of a parameter -> its learning rate as a share of the configured one.

    Returns:
        num_parameters, num_steps, tokens, train_loss (nats, smoothed), skipped_steps, rollbacks, resumed_from_step,
        what `Meter.statistics` tells of time and costs, and the figures of the last evaluation.

    Raises:
        Preempted: on SIGTERM, after a checkpoint.
        UserError: when the loss stays non-finite or diverges.
    """
    torch.set_num_threads(build.runtime.num_threads)
    keep_freed_memory()
    run = _Run(model, batch_at, config, num_steps, build, evaluate, num_evaluations, before_step, rate_of)
    with run.stop.listening():
        return run.run(evaluation_tokens)


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
        before_step: Callable[[int], None],
        rate_of: Callable[[str], float] | None,
    ) -> None:
        self.device = resolve_device(build.runtime.device)
        self.world = World(build.runtime)
        self.given = model.to(self.device)
        self.model = self.world.spread(self.given)
        self.batch_at, self.config, self.num_steps, self.build = batch_at, config, num_steps, build
        self.evaluate, self.before_step = evaluate, before_step
        self.evaluation_steps = {round(num_steps * (i + 1) / num_evaluations) for i in range(num_evaluations)}
        self.anchor_every = max(MIN_STEPS_BETWEEN_ANCHORS, num_steps // ANCHORS)
        self.optimizer = OptimizerSet(self.model, config, rate_of)
        self.averages = WeightAverages(config, num_steps)
        self.checkpoints = Checkpointer(build.work, _determinism(self.device, config), self.world.name)
        self.stop = StopRequest()
        self.course, self.figures = Course(config, num_steps), Figures(worlds=[self.world.name])
        self.step = 0

    def run(self, evaluation_tokens: int) -> dict[str, Any]:
        self._resume()
        resumed_from = self.step
        self._prepare_model()
        tokens_per_step, length = self.batch_at(0).tokens.numel(), self.batch_at(0).tokens.shape[1]
        self.meter = Meter(self.build.runtime, self.model, self.device, self.config, self.world.size, length)
        self.meter.foretell(tokens_per_step * self.num_steps, evaluation_tokens * len(self.evaluation_steps))
        self.journal = Journal(self.build.folder, self.build.work, self.step) if self.world.first else None
        if self.journal and not self.step:
            self.journal.write(0, **self.meter.forecast.figures())
        self.build.progress(self.figures.tokens, None, "tokens", **self.meter.headline())
        self._last_checkpoint = time.monotonic()
        try:
            while True:
                self._evaluate_if_due()
                if self.step >= self.num_steps or self._out_of_patience():
                    break
                self._train_step()
            self._stop_if_asked()  # with the last step: the stages after this one would know nothing of it
        except Stopped:
            self._checkpoint()
            self.checkpoints.wait()
            raise Preempted(f"stopped after step {self.step}; the same command resumes from there") from None
        finally:
            if self.journal:
                self.journal.close()
            self.checkpoints.wait()
        self._finish_weights()
        self.course.check_outcome(self.figures, self.given, self.step, best_kept=self._out_of_patience())
        return self._statistics(resumed_from)

    # ---------------------------------------------------------------- one step

    def _train_step(self) -> None:
        started = time.perf_counter()
        self.before_step(self.step)
        batch = self.batch_at(self.step)
        with self.stop.interruptible(self.world.size == 1):
            loss = self._gradients(batch)
        loss, save_now = self._agree(loss)
        if self.config.l1:
            _add_l1(self.model, self.config.l1)
        norm = clip_gradients(self.model, self.config.gradient_clip)
        fraction = learning_rate_fraction(self.config, self.step, self.num_steps)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizer.step(fraction, self.step)
        self.step += 1
        self._watch(loss, norm, finite)
        if finite:
            self.averages.after_step(self.model, self.step)
        seconds = time.perf_counter() - started
        self.figures.tokens += batch.tokens.numel()
        self.figures.seconds += seconds
        self._report(loss, norm, fraction, batch.tokens.numel() / seconds)
        anchor = self.step % self.anchor_every == 0 and not self.figures.skipped_in_a_row
        if anchor or save_now:
            self._checkpoint(anchor=anchor)

    def _gradients(self, batch: Batch) -> float:
        """Accumulate the gradient of the mean loss over micro-batches; returns this process's share of that loss."""
        rows = max(1, self.config.micro_batch_tokens // batch.tokens.shape[1])
        num_targets = max(1, int((batch.targets != IGNORE).sum()))
        own = batch.share(self.world)
        first_row = self.world.rank * len(own.tokens)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for start in range(0, len(own.tokens), rows):
            if start:
                self._stop_if_asked()
            # Dropout is a function of step and row, so it does not depend on who works on the row.
            torch.manual_seed(self.config.seed * 1_000_003 + self.step + 7_368_787 * (first_row + start))
            tokens, targets = (t[start : start + rows].to(self.device) for t in (own.tokens, own.targets))
            beside = None if own.beside is None else own.beside[start : start + rows].to(self.device)
            last = start + rows >= len(own.tokens)
            total += self.world.backward(
                self.model, tokens, targets, beside, num_targets, self.config.label_smoothing, last=last
            )
        return float(total)

    def _agree(self, loss: float) -> tuple[float, bool]:
        """The loss of all processes, and whether all should save now.

        Raises:
            Stopped: one of them was asked to stop; all do, before the same optimizer step.
        """
        due = time.monotonic() - self._last_checkpoint > self.config.checkpoint_seconds
        loss, stops, saves = self.world.sum(loss, float(self.stop.wanted), float(due and self.world.first))
        if stops:
            raise Stopped
        return loss, saves > 0

    def _stop_if_asked(self) -> None:
        """Where all processes stand at the same place: they stop together if one of them was asked to."""
        if self.world.sum(float(self.stop.wanted))[0]:
            raise Stopped

    @contextmanager
    def _asking_before_each_batch(self) -> Iterator[None]:
        """An evaluation by several processes, of which none may leave the others waiting, can be stopped too."""
        if self.world.size == 1:
            yield
            return
        hook = self.model.blocks()[0].register_forward_pre_hook(lambda *_: self._stop_if_asked())
        try:
            yield
        finally:
            hook.remove()

    def _watch(self, loss: float, norm: float, finite: bool) -> None:
        """Leave out steps that are not finite, smooth the loss, end a run that is worse than at its beginning."""
        if not finite:
            self._skip(loss, norm)
            return
        self.figures.after_step(loss)
        self.course.check_step(self.figures, self.step)

    def _skip(self, loss: float, norm: float) -> None:
        """Leave the weights as they are; several such steps in a row mean that the weights themselves are spoilt."""
        self.optimizer.zero_grad()
        self.figures.skipped += 1
        self.figures.skipped_in_a_row += 1
        if self.figures.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            self._roll_back(f"loss {loss}, gradient norm {norm}")

    def _roll_back(self, what: str) -> None:
        """Take up the weights of the last anchor and go on with the data ahead: those in between are left out.

        Raises:
            UserError: there is no anchor yet, or it did not help before.
        """
        self.checkpoints.wait()
        self.world.wait()
        anchor = self.checkpoints.anchor(self.step) if self.figures.rollbacks < MAX_ROLLBACKS else None
        if anchor is None:
            raise self.course.is_not_finite(self.figures, self.step, what)
        self._load_tensors(anchor)
        self.figures.rollbacks += 1
        self.figures.skipped_in_a_row = self.figures.steps_above_first = 0
        self.figures.smoothed_loss = Figures.of_checkpoint(anchor.figures, self.build.work).smoothed_loss
        if self.journal:
            self.journal.write(self.step, rolled_back_to_step=anchor.step)

    def _report(self, loss: float, norm: float, fraction: float, tokens_per_second: float) -> None:
        figures: dict[str, float | None] = {
            "train_loss": loss if math.isfinite(loss) else None,
            "learning_rate": self.config.learning_rate * fraction,
            "gradient_norm": norm if math.isfinite(norm) else None,
        }
        live = self.meter.live(tokens_per_second, self.figures.seconds)
        left = self.figures.seconds / self.step * (self.num_steps - self.step)
        if self.journal:
            self.journal.write(self.step, tokens=self.figures.tokens, **figures, **live, seconds_left=round(left, 1))
        total = self.figures.tokens / self.step * self.num_steps
        known = {name: value for name, value in figures.items() if value is not None}
        self.build.progress(self.figures.tokens, total, "tokens", **known, **live)

    # ---------------------------------------------------------------- evaluation

    def _evaluate_if_due(self) -> None:
        figures = self.figures
        if self.evaluate is None or self.step not in self.evaluation_steps or figures.evaluated_at == self.step:
            return
        # An evaluation has shapes of its own; compiling for them costs more than it saves.
        with self.averages.in_place(self.model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.model.eval()
            with self.stop.interruptible(self.world.size == 1), self._asking_before_each_batch():
                metrics = self.world.from_first(self.evaluate(self.model))
            self.model.train()
        figures.evaluated_at, figures.metrics = self.step, dict(metrics)
        if self.journal:
            self.journal.write(self.step, **metrics)
        if not self.config.patience or "val_loss" not in metrics:
            return
        if metrics["val_loss"] < figures.best_val_loss:
            figures.best_val_loss, figures.evaluations_without_gain = metrics["val_loss"], 0
            self.averages.keep_best(self.model)
        else:
            figures.evaluations_without_gain += 1

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.figures.evaluations_without_gain

    # ---------------------------------------------------------------- beginning and end

    def _prepare_model(self) -> None:
        self.model.train()
        self.model.compute_dtype = self.given.compute_dtype = DTYPES[self.config.precision]
        decoders = [module for module in self.model.modules() if isinstance(module, Decoder)]
        for decoder in decoders:  # the model itself, or the trunk of one that classifies or sees
            decoder.activation_checkpointing = self.config.activation_checkpointing
        if self.config.activation_checkpointing and not decoders:
            raise UserError("activation_checkpointing needs model.kind=decoder: other models keep all activations")
        if self.config.compile:
            for block in self.model.blocks():
                block.compile()

    def _resume(self) -> None:
        state = self.checkpoints.newest()
        if state is None:
            return
        self.figures = Figures.of_checkpoint(state.figures, self.build.work)
        self._load_tensors(state)
        if state.world != self.world.name:
            self.figures.worlds.append(self.world.name)
        self.step = state.step

    def _load_tensors(self, state: State) -> None:
        own = self.model.state_dict()

        def placed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: self.world.part(t, own[name.partition("|")[0]]) for name, t in tensors.items()}

        self._check_architecture(state.tensors["model"])
        self.model.load_state_dict(placed(state.tensors["model"]))
        self.optimizer.load_state(placed(state.tensors.get("optimizer", {})))
        averages = {name: placed(tensors) for name, tensors in state.tensors.items()}
        self.averages.take_up(averages, Figures.of_checkpoint(state.figures, self.build.work).num_averaged)

    def _check_architecture(self, tensors: Mapping[str, Tensor]) -> None:
        own = {name: [*tensor.shape] for name, tensor in self.model.state_dict().items()}
        found = {name: [*tensor.shape] for name, tensor in tensors.items()}
        for name in sorted(own.keys() | found.keys()):
            if own.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint in {self.build.work} is of another architecture: tensor {name} is "
                    f"{found.get(name, 'not there')}, this model's is {own.get(name, 'not there')}; "
                    f"restore the model's settings, or remove {self.build.work} to start over"
                )

    def _checkpoint(self, anchor: bool = False) -> None:
        groups = {"model": self.model.state_dict(), "optimizer": self.optimizer.state(), **self.averages.kept}
        tensors = {name: self.world.whole(group) for name, group in groups.items()}
        self.figures.num_averaged = self.averages.num_averaged
        if self.world.first:
            self.checkpoints.save(State(self.step, tensors, vars(self.figures)), anchor=anchor)
        self._last_checkpoint = time.monotonic()

    def _finish_weights(self) -> None:
        """Leave in the given model what the run came to: the best weights, the average, or the last."""
        final = self.averages.final()
        if final:
            self.model.load_state_dict(final)
        if self.model is not self.given:
            self.given.load_state_dict(self.world.whole(self.model.state_dict()))
        self.given.eval()

    def _statistics(self, resumed_from: int) -> dict[str, Any]:
        figures = self.figures
        return {
            "num_parameters": self.given.num_parameters(),
            "num_steps": self.step,
            "tokens": figures.tokens,
            "train_loss": figures.smoothed_loss,
            "skipped_steps": figures.skipped,
            "rollbacks": figures.rollbacks,
            "resumed_from_step": resumed_from,
            "processes": ", then ".join(figures.worlds),
            **self.meter.statistics(figures.tokens, figures.seconds),
            **figures.metrics,
        }


def _determinism(device: torch.device, config: OptimizationConfig) -> dict[str, Any]:
    """What must be equal for two runs to give the same bits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return {
        "torch": torch.__version__,
        "device": device.type,
        "processor": name,
        "num_threads": threads,
        **identity_of(config),
    }


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale the gradients down to a norm of at most `largest` (0: leave them); returns their norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(whole_tensor(nn.utils.get_total_norm(gradients)))
    if largest and norm > largest and math.isfinite(norm):
        torch._foreach_mul_(gradients, largest / norm)
    return norm


def _add_l1(model: nn.Module, l1: float) -> None:
    """Subgradient of l1 * sum |w| over the matrices."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.ndim >= 2:
            parameter.grad.add_(parameter.detach().sign(), alpha=l1)
