"""Training of a GPT-2-small-sized model on one GPU, beside nanoGPT and nanochat: tokens per second and MFU.

    python -m tests.benchmarks.gpu_training [--nanogpt DIR] [--nanochat DIR] [--muon] [--documents TOKENS]
    python -m tests.benchmarks.gpu_training --tiny --device cpu ...      # the same code on any machine

DIR are checkouts of github.com/karpathy/nanoGPT and nanochat. All models have the same layers, width, heads, context
and vocabulary, train in bf16, compiled, on the same tokens, a step of each in turns. MFU counts every model's own
matrix products, over the peak of a large product measured in the same run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flows.presets import gpu
from lm_core.model.build import build_model
from lm_core.model.losses import IGNORE
from lm_core.training.loop import clip_gradients
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.throughput import flops_per_token, matmul_peak

VOCAB_SIZE = 32_768
WARMUP_STEPS = 3


class Shape:
    """What all models have in common."""

    def __init__(self, tiny: bool) -> None:
        model = gpu().pretrain.model
        self.length = gpu().tokenize.context_length
        self.vocab_size = VOCAB_SIZE
        if tiny:
            model = model.model_copy(update={"num_layers": 2, "d_model": 128, "num_heads": 2, "num_kv_heads": 2})
            model = model.model_copy(update={"d_ff": 256})
            self.length, self.vocab_size = 128, 512
        self.model = model

    def attention_flops(self) -> float:
        return 6.0 * self.model.num_layers * self.model.d_model * self.length


class Ours:
    """The preset gpu: its model, its optimizer (AdamW for comparison, Muon as shipped), blocks compiled.

    Args:
        document_tokens: attention stays within documents of so many tokens; 0: it sees the whole window.
    """

    def __init__(self, shape: Shape, device: str, optimizer: str, compiled: bool, document_tokens: int = 0) -> None:
        self.document_tokens = document_tokens
        self.config = gpu().pretrain.optimization.model_copy(update={"optimizer": optimizer})
        self.model = build_model(shape.model, vocab_size=shape.vocab_size, context_length=shape.length, seed=0)
        self.model.to(device).train()
        self.model.compute_dtype = torch.bfloat16
        if compiled:
            for block in self.model.blocks():
                block.compile()
        self.optimizer = OptimizerSet(self.model, self.config)
        self.flops_per_token = flops_per_token(self.model, shape.length)

    def step(self, number: int, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = torch.zeros((), device=batches[0][0].device)
        for tokens, targets in batches:
            first = None
            if self.document_tokens:
                position = torch.arange(tokens.shape[1], device=tokens.device)
                first = (position - position % self.document_tokens).expand(tokens.shape)
            loss = self.model.loss_sum(tokens, targets, beside=first) / (targets != IGNORE).sum() / len(batches)
            loss.backward()
            total += loss.detach()
        clip_gradients(self.model, self.config.gradient_clip)
        self.optimizer.step(1e-2, number)
        return float(total)


class NanoGPT:
    """nanoGPT as its train.py runs it on a GPU: bf16 autocast, the whole model compiled, fused AdamW."""

    def __init__(self, folder: Path, shape: Shape, device: str, compiled: bool) -> None:
        module = _module("nanogpt_model", folder / "model.py")
        model, kind = shape.model, device.partition(":")[0]
        with contextlib.redirect_stdout(io.StringIO()):
            gpt = module.GPT(
                module.GPTConfig(
                    block_size=shape.length, vocab_size=shape.vocab_size, n_layer=model.num_layers,
                    n_head=model.num_heads, n_embd=model.d_model, dropout=0.0, bias=False,
                )
            ).to(device)  # fmt: skip
            self.optimizer = gpt.configure_optimizers(0.1, 6e-6, (0.9, 0.95), kind)
        matrices = sum(p.numel() for p in gpt.parameters() if p.ndim == 2) - gpt.transformer.wpe.weight.numel()
        self.flops_per_token = 6.0 * matrices + shape.attention_flops()
        self.parameters, self.kind = list(gpt.parameters()), kind
        self.gpt = torch.compile(gpt) if compiled else gpt

    def step(self, number: int, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = torch.zeros((), device=batches[0][0].device)
        for tokens, targets in batches:
            with torch.autocast(self.kind, torch.bfloat16):
                _, loss = self.gpt(tokens, targets)
            (loss / len(batches)).backward()
            total += loss.detach() / len(batches)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)


class NanoChat:
    """nanochat's model with its own optimizer (Muon and AdamW), full attention in every layer, compiled whole."""

    def __init__(self, folder: Path, shape: Shape, device: str, compiled: bool) -> None:
        sys.path.insert(0, str(folder))
        from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

        model = shape.model
        config = GPTConfig(
            sequence_len=shape.length, vocab_size=shape.vocab_size, n_layer=model.num_layers,
            n_head=model.num_heads, n_kv_head=model.num_kv_heads, n_embd=model.d_model, window_pattern="L",
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()), torch.device(device):
            gpt = GPT(config)
            gpt.init_weights()
            self.optimizer = gpt.setup_optimizer()
        self.flops_per_token = 6.0 * gpt.num_matmul_params() + shape.attention_flops()
        self.gpt = torch.compile(gpt, dynamic=False) if compiled else gpt

    def step(self, number: int, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = torch.zeros((), device=batches[0][0].device)
        for tokens, targets in batches:
            loss = self.gpt(tokens, targets)
            (loss / len(batches)).backward()
            total += loss.detach() / len(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 1e-2
        self.optimizer.step()
        self.gpt.zero_grad(set_to_none=True)
        return float(total)


def _module(name: str, path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def systems_of(options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    compiled = not options.eager
    systems: dict[str, Any] = {"ours": Ours(shape, options.device, "adamw", compiled)}
    if options.muon:
        systems["ours_muon"] = Ours(shape, options.device, "torch_muon", compiled)
        systems["ours_muon_in_parts"] = Ours(shape, options.device, "muon", compiled)
    if options.documents:
        systems["ours_within_documents"] = Ours(shape, options.device, "adamw", compiled, options.documents)
    if options.nanogpt:
        systems["nanogpt"] = NanoGPT(options.nanogpt, shape, options.device, compiled)
    if options.nanochat:
        systems["nanochat"] = NanoChat(options.nanochat, shape, options.device, compiled)
    return systems


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_float32_matmul_precision("high")  # as both peers do
    shape = Shape(options.tiny)
    rows = max(1, options.micro_batch_tokens // shape.length)
    data = torch.randint(0, shape.vocab_size, (options.micro_batches, rows, shape.length + 1), device=options.device)
    batches = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in data]
    tokens = sum(batch.numel() for batch, _ in batches)
    systems = systems_of(options, shape)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    losses: dict[str, float] = {}
    for number in range(options.steps + WARMUP_STEPS):
        for name, system in systems.items():
            _synchronise(options.device)
            started = time.perf_counter()
            losses[name] = system.step(number, batches)
            _synchronise(options.device)
            if number >= WARMUP_STEPS:
                seconds[name].append(time.perf_counter() - started)
    peak = matmul_peak(torch.device(options.device).type, torch.bfloat16)
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "mfu": {name: round(rate * systems[name].flops_per_token / peak, 4) for name, rate in rates.items()},
        "ratio": {name: round(rates["ours"] / rate, 3) for name, rate in rates.items() if name != "ours"},
        "loss": {name: round(loss, 3) for name, loss in losses.items()},
        "matmul_peak_flops": round(peak),
        "tokens_per_step": tokens,
        "steps": options.steps,
    }


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--muon", action="store_true", help="also ours with Muon, as the preset ships it, and in parts")
    parser.add_argument(
        "--documents", type=int, default=0, help="also with attention within documents of so many tokens"
    )
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--tiny", action="store_true", help="two layers and 128 tokens of context")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batch-tokens", type=int, default=32_768)
    parser.add_argument("--micro-batches", type=int, default=2)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
    print(json.dumps({"benchmark": "gpu_training", "device": name, "tiny": options.tiny, **measure(options)}))


if __name__ == "__main__":
    main()
