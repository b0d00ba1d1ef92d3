"""What feeds what when a model is scored as it is on a task that it was tuned for: only its twins are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flows.finetune_settings import SMOKE_BATCH_TOKENS, SMOKE_STEPS
from flows.wiring import Run
from lm_core import stages
from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.downstream.config import FinetuneConfig, PreferConfig
from lm_core.downstream.task import Task
from lm_core.downstream.tuned import PICTURED, PREFERRED, Tuned
from lm_core.errors import UserError


@dataclass(frozen=True)
class AsItIs:
    """A tuned model with those whose task it is compared in.

    Attributes:
        lineage: looks up how a checkpoint was tuned.
    """

    tuned: Tuned
    lineage: Callable[[Checkpoint], Tuned | None]
    smoke: bool = False

    def fits(self, task: Task) -> bool:
        """Whether the model was tuned for the task, and in the way of its kind.

        Raises:
            UserError: it was tuned for a task of this name, but of another kind.
        """
        if task.name not in self.tuned.tasks:
            return False
        wanted = {"visual": PICTURED, "preference": PREFERRED}.get(task.kind, stages.FINETUNE.name)
        if self.tuned.model.stage != wanted:
            raise UserError(
                f"the model was tuned for {task.name} by the stage {self.tuned.model.stage}, and a task of kind "
                f"{task.kind} wants {wanted}; take the base, or another name for the task"
            )
        return True

    def base(self) -> Checkpoint:
        """What the model was tuned from.

        Raises:
            UserError: it is not in this store.
        """
        if self.tuned.base is None:
            raise UserError(
                "the model that it was tuned from is not in this workspace, and what it is compared with is made from "
                "that; evaluate where it was tuned, or fine-tune a base for the task"
            )
        return self.tuned.base

    def random_twin(self, run: Run, task: Task, examples: DownstreamData) -> Checkpoint:
        """The same fine-tune from random weights; the architecture is the model's own where its base is not at hand."""
        settings = FinetuneConfig.model_validate(self.tuned.settings)
        few = {"max_steps": SMOKE_STEPS, "guard_tokens": SMOKE_BATCH_TOKENS} if self.smoke else {}
        settings = settings.model_copy(update={"from_random": True, "replay_fraction": 0.0, **few})
        learnt_from = examples if self.smoke or self.tuned.examples is None else self.tuned.examples
        if settings.mixture and learnt_from is examples:
            raise UserError(
                f"the model has learnt {', '.join(settings.mixture)}, whose examples are "
                + ("more than a smoke reads" if self.smoke else "not in this workspace")
            )
        label = f"finetune {settings.task} from random weights"
        base = self.tuned.base or self.tuned.model
        return run(stages.FINETUNE, settings, label=label, base=base, examples=learnt_from)

    def preferred(self, run: Run, task: Task, examples: DownstreamData) -> tuple[Checkpoint, Checkpoint]:
        """The reference of a model tuned by pairs, and the same two steps from random weights."""
        reference = self.lineage(self.base())
        if reference is None:
            raise UserError(f"the model that {task.name} was tuned from is no fine-tune itself")
        before = AsItIs(reference, self.lineage, self.smoke).random_twin(run, task, examples)
        settings = PreferConfig.model_validate(self.tuned.settings)
        if self.smoke:
            settings = settings.model_copy(update={"max_steps": SMOKE_STEPS})
        label = f"prefer {task.name} from random weights"
        return reference.model, run(stages.PREFER, settings, label=label, base=before, examples=examples)
