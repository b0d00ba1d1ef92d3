"""Tokens and seconds to the bits per byte that nanoGPT reaches, and what each ingredient of ours brings.

    python tests/benchmarks/sample_efficiency.py --nanogpt DIR --tokens FOLDER --tokenizer FILE --journal FILE

DIR is a checkout of github.com/karpathy/nanoGPT; FOLDER the artifact of `tokenize`, FILE a tokenizer.json. nanoGPT runs
as shipped at several learning rates and sizes of its steps, and its best counts. Every finished run is a line of the
journal: the same command goes on where it was stopped, `--runs` takes some of them. The last line is JSON: means over
the seeds with the half width of their 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from training_against_nanogpt import CONTEXT_LENGTH, SIZES, NanoGPT, Ours, load_peer

from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.tokenizer import load_tokenizer
from lm_core.tokens import Windows, window_order
from lm_core.training.config import OptimizationConfig
from lm_core.training.loop import clip_gradients
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.pretrain import bits_per_byte_on, windows_to_batch
from lm_core.training.schedule import learning_rate_fraction
from lm_core.training.throughput import keep_freed_memory

# Ours on the smallest share of the peer's tokens, each without one ingredient: changes of model and optimizer.
WITHOUT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "muon": ({}, {"optimizer": "adamw"}),
    "qk_norm": ({"qk_norm": False}, {}),
    "zero_output": ({"init": "normal"}, {}),
    "muon_in_parts": ({}, {"muon_in_parts": False}),
}
LARGE_STEP = 4096


class PeerAsOurs(LanguageModel):
    """The peer's trained model behind our interface, so that one evaluation scores both."""

    def __init__(self, gpt: Any) -> None:
        torch.nn.Module.__init__(self)
        self.gpt, self.compute_dtype = gpt, torch.float32

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = self.gpt.transformer
        x = parts.wte(tokens) + parts.wpe(torch.arange(tokens.shape[1]))
        for block in parts.h:
            x = block(x)
        return parts.ln_f(x)

    @property
    def output_weight(self) -> torch.Tensor:
        return self.gpt.lm_head.weight

    def blocks(self) -> torch.nn.ModuleList:
        return self.gpt.transformer.h


class OursInTheLayoutOfGPT2(NanoGPT):
    """Our optimizer and schedule on nanoGPT's model: what is left is the layout of Qwen3."""

    def __init__(self, peer: Any, size: str, vocab_size: int, num_steps: int, seed: int, batch_tokens: int) -> None:
        super().__init__(peer, size, vocab_size, num_steps, seed, lr=1e-3, bf16=False)
        self.config = OptimizationConfig(seed=seed, batch_tokens=batch_tokens, micro_batch_tokens=batch_tokens)
        self.muon = OptimizerSet(PeerAsOurs(self.gpt), self.config)

    def step(self, step: int, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        self.gpt(tokens, targets.masked_fill(targets == IGNORE, -1))[1].backward()
        clip_gradients(self.gpt, self.config.gradient_clip)
        self.muon.step(learning_rate_fraction(self.config, step, self.num_steps), step)


def train(make: Callable[[int], Any], windows: Windows, num_tokens: int, batch_tokens: int, seed: int) -> Any:
    """A system trained on so many tokens, its seconds, and those of the processor, which no neighbour changes."""
    rows = batch_tokens // CONTEXT_LENGTH
    num_steps = num_tokens // (rows * CONTEXT_LENGTH)
    system = make(num_steps)
    started, used = time.perf_counter(), time.process_time()
    for step in range(num_steps):
        batch = windows_to_batch(windows.read(window_order(seed, step, rows, len(windows))), windows.pad)
        system.step(step, batch.tokens, batch.targets)
    return system, time.perf_counter() - started, time.process_time() - used


def runs(peer: Any, options: argparse.Namespace, size: str, seed: int) -> dict[str, tuple[Any, int, int]]:
    """What makes each run's system for a number of steps, its tokens and the tokens of its steps."""
    vocab_size, batch = Windows(options.tokens, "train").vocab_size, options.batch_tokens

    def nanogpt(num_steps: int, lr: float) -> NanoGPT:
        return NanoGPT(peer, size, vocab_size, num_steps, seed, lr=lr, bf16=False)

    def ours(num_steps: int, model: dict[str, Any], optimization: dict[str, Any], batch: int = batch) -> Ours:
        sizes = {"batch_tokens": batch, "micro_batch_tokens": batch}
        return Ours(size, vocab_size, num_steps, seed, model, **sizes, **optimization)

    whole = options.num_tokens
    made: dict[str, tuple[Any, int, int]] = {}
    for lr in options.peer_learning_rates:
        for peer_batch in options.peer_batch_tokens:
            made[f"nanogpt/{lr:g}/{peer_batch}"] = partial(nanogpt, lr=lr), whole, peer_batch
    for share in options.shares:
        made[f"ours/{share:g}/{batch}"] = partial(ours, model={}, optimization={}), int(whole * share), batch
        for lr, muon_lr in options.learning_rates:
            rates = {"learning_rate": lr, "muon_learning_rate": muon_lr}
            named = f"ours/{share:g}/{batch}/{lr:g}/{muon_lr:g}"
            made[named] = partial(ours, model={}, optimization=rates), int(whole * share), batch
    least = int(whole * min(options.shares))
    for name, (model, optimization) in WITHOUT.items():
        made[f"without_{name}"] = partial(ours, model=model, optimization=optimization), least, batch
    made["without_small_steps"] = partial(ours, model={}, optimization={}, batch=LARGE_STEP), least, LARGE_STEP
    in_layout = partial(OursInTheLayoutOfGPT2, peer, size, vocab_size, seed=seed, batch_tokens=batch)
    made["without_layout"] = in_layout, least, batch
    return {name: made[name] for name in made if not options.runs or name in options.runs}


def finished(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def run_all(peer: Any, options: argparse.Namespace) -> None:
    """Every run that the journal does not hold yet."""
    windows, validation = Windows(options.tokens, "train"), Windows(options.tokens, "validation")
    evaluate = bits_per_byte_on(validation, load_tokenizer(options.tokenizer), options.validation_tokens)
    done = {(line["size"], line["seed"], line["run"]) for line in finished(options.journal)}
    for size in options.sizes:
        for seed in options.seeds:
            for name, (make, num_tokens, batch_tokens) in runs(peer, options, size, seed).items():
                if (size, seed, name) in done:
                    continue
                system, seconds, used = train(make, windows, num_tokens, batch_tokens, seed)
                with torch.no_grad():
                    bits = evaluate(PeerAsOurs(system.gpt) if hasattr(system, "gpt") else system.model)
                line = {"size": size, "seed": seed, "run": name, "tokens": num_tokens}
                line |= {"seconds": round(seconds, 2), "processor_seconds": round(used, 2)}
                line["bits_per_byte"] = round(bits["val_bits_per_byte"], 4)
                with options.journal.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(line, flush=True)


def with_interval(values: list[float]) -> dict[str, Any]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 4), "half_width": half if half is None else round(float(half), 4)}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Per size: bits per byte of every run, and where ours is at least as good as the peer's best, how much cheaper."""
    result: dict[str, Any] = {}
    for size in dict.fromkeys(line["size"] for line in lines):
        by_run: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            if line["size"] == size:
                by_run[line["run"]].append(line)
        bits = {run: with_interval([line["bits_per_byte"] for line in group]) for run, group in by_run.items()}
        seconds = {
            run: round(float(np.mean([line["processor_seconds"] for line in group])), 1)
            for run, group in by_run.items()
        }
        peers = [run for run in by_run if run.startswith("nanogpt")]
        cheaper = {}
        if peers:
            best = min(peers, key=lambda run: bits[run]["mean"])
            for run in by_run:
                if run.startswith("ours") and bits[run]["mean"] <= bits[best]["mean"]:
                    tokens = by_run[best][0]["tokens"] / by_run[run][0]["tokens"]
                    cheaper[run] = {"tokens": round(tokens, 2), "seconds": round(seconds[best] / seconds[run], 2)}
        result[size] = {"bits_per_byte": bits, "processor_seconds": seconds, "times_cheaper_to_the_peers_best": cheaper}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", help="nanogpt/0.003/4096, ours/0.2/1024, without_muon...; all if left out")
    parser.add_argument("--sizes", nargs="+", default=["1.3M", "5.9M"], choices=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.2])
    parser.add_argument("--peer-learning-rates", nargs="+", type=float, default=[1e-3, 3e-3, 6e-3])
    parser.add_argument(
        "--learning-rates",
        nargs=2,
        type=float,
        action="append",
        default=[],
        metavar=("ADAMW", "MUON"),
        help="of ours, beside the defaults; can be given again",
    )
    parser.add_argument("--num-tokens", type=int, default=819_200)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of our steps")
    parser.add_argument("--peer-batch-tokens", type=int, nargs="+", default=[4096, 1024], help="the best counts")
    parser.add_argument("--validation-tokens", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    run_all(load_peer(options.nanogpt), options)
    print(json.dumps({"benchmark": "sample_efficiency", **summary(finished(options.journal))}))


if __name__ == "__main__":
    main()
