"""One of two processes that train together, asked to stop in the middle of an evaluation and of a step.

    python -m tests.training.stopped_together RANK STRATEGY FOLDER

What each of them met is printed as JSON.
"""

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lm_core.errors import Preempted
from lm_core.training.loop import train
from tests.training.corpus_files import new_build
from tests.training.tiny_runs import batch_at, config, tiny_model

STEPS, BATCHES = 4, 50


def counted(model: torch.nn.Module, asked_at: int | None) -> list[int]:
    """The calls of a model's first block, as they come; at one of them this process is asked to stop."""
    calls: list[int] = []

    def count(*_: object) -> None:  # a function: copies of the model, as fsdp makes one, share it
        calls.append(1)
        if len(calls) == asked_at:
            os.kill(os.getpid(), signal.SIGTERM)

    model.blocks()[0].register_forward_pre_hook(count)
    return calls


def evaluate(model: torch.nn.Module) -> dict[str, float]:
    batch = batch_at(0)
    return {"val_loss": sum(float(model.token_losses(batch.tokens, batch.targets).mean()) for _ in range(BATCHES))}


def run(folder: Path, strategy: str, name: str, *, asked_at: int | None, num_evaluations: int) -> dict:
    model = tiny_model()
    calls = counted(model, asked_at if dist.get_rank() == 1 else None)
    build = new_build(folder, name)
    build = replace(build, runtime=replace(build.runtime, num_processes=2, strategy=strategy))
    dist.barrier()  # the checkpoint of the run before must be there
    try:
        train(
            model,
            batch_at,
            config(micro_batch_tokens=16),
            num_steps=STEPS,
            build=build,
            evaluate=evaluate if num_evaluations else None,
            num_evaluations=max(1, num_evaluations),
        )
    except Preempted as stopped:
        return {"said": str(stopped), "calls": len(calls)}
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return {"said": "finished", "calls": len(calls), "weights": hashlib.sha256(weights).hexdigest()}


def main(rank: str, strategy: str, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "meeting"), 2)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=2, timeout=timedelta(minutes=3))
    root = Path(folder) / "runs"
    # A step has four micro-batches of one row for each of the two; an evaluation after two of them has fifty batches.
    found = {
        "evaluation": run(root, strategy, "a", asked_at=2 * 4 + 3, num_evaluations=2),
        "then": run(root, strategy, "a", asked_at=None, num_evaluations=2),
        "step": run(root, strategy, "b", asked_at=4 + 2, num_evaluations=0),
        "after": run(root, strategy, "b", asked_at=None, num_evaluations=0),
        "undisturbed": run(root, strategy, "c", asked_at=None, num_evaluations=0),
    }
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
