"""Training beside nanoGPT and others: throughput and memory at equal size.

    python tests/benchmarks/training_against_nanogpt.py --nanogpt DIR [--litgpt DIR] [--nanochat DIR] throughput
    python tests/benchmarks/training_against_nanogpt.py --nanogpt DIR memory

DIR is a checkout of github.com/karpathy/nanoGPT, of Lightning-AI/litgpt, of karpathy/nanochat. Steps of all are taken
in turns in one process, so that whatever else the machine does meets all. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import training_peers

from lm_core.model.build import build_model
from lm_core.model.losses import IGNORE
from lm_core.runtime import fast_precision
from lm_core.training.config import ModelConfig, OptimizationConfig
from lm_core.training.loop import DTYPES, clip_gradients
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.schedule import learning_rate_fraction
from lm_core.training.throughput import keep_freed_memory, peak_rss_bytes

CONTEXT_LENGTH = 256
SIZES = {"1.3M": (4, 128, 2, 344), "5.9M": (6, 256, 4, 688), "15.7M": (8, 384, 6, 1024)}


class Ours:
    """One step of our recipe."""

    def __init__(
        self, size: str, vocab_size: int, num_steps: int, seed: int, model: dict[str, Any], **changes: Any
    ) -> None:
        layers, width, heads, d_ff = SIZES[size]
        shape = {"num_layers": layers, "d_model": width, "num_heads": heads, "num_kv_heads": heads, "d_ff": d_ff}
        config = ModelConfig(**shape, **model)
        self.model = build_model(config, vocab_size=vocab_size, context_length=CONTEXT_LENGTH, seed=seed)
        self.config = OptimizationConfig(precision=fast_precision(), seed=seed, **changes)
        self.model.compute_dtype = DTYPES[self.config.precision]
        self.optimizer, self.num_steps = OptimizerSet(self.model, self.config), num_steps

    def step(self, step: int, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        (self.model.loss_sum(tokens, targets) / (targets != IGNORE).sum()).backward()
        clip_gradients(self.model, self.config.gradient_clip)
        self.optimizer.step(learning_rate_fraction(self.config, step, self.num_steps), step)


class NanoGPT:
    """One step of nanoGPT's recipe: its model, its AdamW, warmup and cosine to a tenth, clipping at one."""

    def __init__(self, module: Any, size: str, vocab_size: int, num_steps: int, seed: int, *, lr: float, bf16: bool):
        layers, width, heads, _ = SIZES[size]
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            self.gpt = module.GPT(
                module.GPTConfig(
                    block_size=CONTEXT_LENGTH, vocab_size=vocab_size, n_layer=layers, n_head=heads, n_embd=width,
                    dropout=0.0, bias=False,
                )
            )  # fmt: skip
            self.optimizer = self.gpt.configure_optimizers(0.1, lr, (0.9, 0.95), "cpu")
        self.lr, self.num_steps, self.bf16 = lr, num_steps, bf16

    def step(self, step: int, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        progress = step / self.num_steps
        warm = min(1.0, (step + 1) / max(1, 0.04 * self.num_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            _, loss = self.gpt(tokens, targets.masked_fill(targets == IGNORE, -1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.gpt.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def load_peer(folder: Path) -> Any:
    specification = importlib.util.spec_from_file_location("peer_model", folder / "model.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def systems_of(peer: Any, options: argparse.Namespace, size: str) -> dict[str, Callable[[], Any]]:
    """What makes each system of one size, ours first."""

    vocab_size = options.vocab_size

    def ours(optimizer: str) -> Ours:
        tokens = options.batch_tokens
        return Ours(size, vocab_size, 1000, 0, {}, batch_tokens=tokens, micro_batch_tokens=tokens, optimizer=optimizer)

    makers: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, "muon"),
        "ours_adamw": partial(ours, "adamw"),
        "nanogpt": partial(NanoGPT, peer, size, vocab_size, 1000, 0, lr=1e-3, bf16=False),
        "nanogpt_bf16": partial(NanoGPT, peer, size, vocab_size, 1000, 0, lr=1e-3, bf16=True),
        "transformers_bf16": partial(training_peers.llama, SIZES[size], vocab_size, CONTEXT_LENGTH),
    }
    for name in ("litgpt", "nanochat"):
        if folder := getattr(options, name):
            make = getattr(training_peers, name)
            makers[f"{name}_bf16"] = partial(make, folder, SIZES[size], vocab_size, CONTEXT_LENGTH)
    return {name: make for name, make in makers.items() if name in (options.systems or makers)}


def random_batch(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens = options.batch_tokens
    data = torch.randint(0, options.vocab_size, (num_tokens // CONTEXT_LENGTH, CONTEXT_LENGTH + 1))
    return data[:, :-1].contiguous(), data[:, 1:].contiguous()


def ratios(rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """How many times faster each of ours is than each of the others."""
    return {
        ours: {peer: round(rates[ours] / rate, 2) for peer, rate in rates.items() if "ours" not in peer}
        for ours in rates
        if "ours" in ours
    }


def throughput(peer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Best tokens per second of each, their steps in turns; on a machine that is not quiet processor time says more."""
    tokens, targets = random_batch(options)
    result: dict[str, Any] = {}
    for size in options.sizes:
        systems = {name: make() for name, make in systems_of(peer, options, size).items()}
        times: dict[str, list[float]] = {name: [] for name in systems}
        used: dict[str, list[float]] = {name: [] for name in systems}
        for turn in range(options.turns + 1):
            for name, system in systems.items():
                started, before = time.perf_counter(), time.process_time()
                system.step(turn, tokens, targets)
                if turn:
                    times[name].append(time.perf_counter() - started)
                    used[name].append(time.process_time() - before)
        rates = {name: tokens.numel() / min(values) for name, values in times.items()}
        medians = {name: tokens.numel() / statistics.median(values) for name, values in times.items()}
        result[size] = {
            "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
            "median": {name: round(rate) for name, rate in medians.items()},
            "ratios": ratios(rates),
            "processor_ratios": ratios({name: 1 / min(values) for name, values in used.items()}),
        }
        print(size, result[size], flush=True)
    return result


def memory(peer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of three steps, each system in a process of its own, and what it adds to an idle one."""
    result: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    for size in options.sizes:
        peaks = {}
        for name in ("nothing", *systems_of(peer, options, size)):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_peak_of, args=(sender, options, size, name))
            process.start()
            peaks[name] = receiver.recv()
            process.join()
        idle = peaks.pop("nothing")
        result[size] = {
            "idle_mib": idle >> 20,
            "added_mib": {name: (peak - idle) >> 20 for name, peak in peaks.items()},
        }
        print(size, result[size], flush=True)
    return result


def _peak_of(sender: Any, options: argparse.Namespace, size: str, name: str) -> None:
    torch.set_num_threads(options.threads)
    if name != "nothing":
        system = systems_of(load_peer(options.nanogpt), options, size)[name]()
        for step in range(3):
            system.step(step, *random_batch(options))
    sender.send(peak_rss_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("what", choices=["throughput", "memory"])
    parser.add_argument("--litgpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--systems", nargs="+")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    peer = load_peer(options.nanogpt)
    result = {"throughput": throughput, "memory": memory}[options.what](peer, options)
    print(
        json.dumps({"benchmark": options.what, "threads": options.threads, "vocab_size": options.vocab_size, **result})
    )


if __name__ == "__main__":
    main()
