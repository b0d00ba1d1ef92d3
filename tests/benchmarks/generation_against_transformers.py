"""Generation beside `transformers` generate, on the same fp32 weights and prompts, in turns.

    python tests/benchmarks/generation_against_transformers.py [--threads 2] [--presets laptop,real] [--sampled]

The models are those of the presets. Packing the weights, once for a model in service, is a figure of its own. The last
line is JSON: new tokens per second at batch 1 and 16, the ratio, and the share of tokens that are equal (greedy).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from flows.presets import PRESETS
from lm_core.model.build import build_model
from lm_core.model.generate import generate
from lm_core.model.packed import PackedDecoder, pack
from lm_core.model.weights import save_model

PROMPT_TOKENS = 32
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = function()
    return time.perf_counter() - started, made


def compare(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    settings = PRESETS[preset]()
    vocab_size = settings.train_tokenizer.vocab_size
    config = settings.pretrain.model.model_copy(update={"init": "normal", "init_std": 0.1})
    model = build_model(config, vocab_size=vocab_size, context_length=512, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        peer = AutoModelForCausalLM.from_pretrained(folder).eval()
    packing, packed = seconds(lambda: pack(model))
    assert packed is not None
    result: dict[str, Any] = {"parameters": model.num_parameters(), "packing_seconds": round(packing, 3)}
    for batch in (1, 16):
        prompts = torch.randint(0, vocab_size, (batch, PROMPT_TOKENS))
        result[f"batch_{batch}"] = in_turns(packed, peer, prompts, options)
    return result


def in_turns(packed: PackedDecoder, peer: Any, prompts: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    count, sampling = options.new_tokens, SAMPLED if options.sampled else {}
    ours, theirs = [], []
    for _ in range(options.turns):
        ours.append(seconds(lambda: generate(packed, prompts.tolist(), max_new_tokens=count, **sampling)))
        theirs.append(
            seconds(
                lambda: peer.generate(
                    prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count, min_new_tokens=count,
                    do_sample=options.sampled, pad_token_id=0, **sampling,
                )
            )
        )  # fmt: skip
    rates = [len(prompts) * count / min(took for took, _ in runs) for runs in (ours, theirs)]
    result = {"ours": round(rates[0]), "transformers": round(rates[1]), "ratio": round(rates[0] / rates[1], 2)}
    if not options.sampled:
        equal = torch.tensor(ours[0][1]) == theirs[0][1][:, PROMPT_TOKENS:]
        result["equal_tokens"] = round(float(equal.float().mean()), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="laptop,real")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sampled", action="store_true", help="temperature, top-k and top-p instead of greedy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    result = {preset: compare(preset, options) for preset in options.presets.split(",")}
    print(json.dumps({"benchmark": "generation", "threads": options.threads, "sampled": options.sampled} | result))


if __name__ == "__main__":
    main()
