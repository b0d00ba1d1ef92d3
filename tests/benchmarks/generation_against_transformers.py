"""Greedy generation beside `transformers` generate, on the same weights and prompts, in turns.

    python tests/benchmarks/generation_against_transformers.py

The last line is JSON: new tokens per second at batch 1 and 16, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lm_core.model.build import build_model
from lm_core.model.generate import generate
from lm_core.model.weights import save_model
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=4, d_model=192, num_heads=3, num_kv_heads=3, d_ff=512, init="normal", init_std=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build_model(CONFIG, vocab_size=4096, context_length=512, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        peer = AutoModelForCausalLM.from_pretrained(folder).eval()
    result = {}
    for batch in (1, 16):
        prompts = torch.randint(0, 4096, (batch, 32))
        times: dict[str, list[float]] = {"ours": [], "transformers": []}
        for _ in range(options.turns):
            started = time.perf_counter()
            ours = generate(model, prompts.tolist(), max_new_tokens=options.new_tokens)
            times["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            theirs = peer.generate(
                prompts, max_new_tokens=options.new_tokens, min_new_tokens=options.new_tokens, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
            times["transformers"].append(time.perf_counter() - started)
        rates = {name: round(batch * options.new_tokens / min(values)) for name, values in times.items()}
        equal = torch.tensor(ours) == theirs[:, 32:]
        result[f"batch_{batch}"] = rates | {
            "ratio": round(rates["ours"] / rates["transformers"], 2),
            "equal_tokens": round(float(equal.float().mean()), 4),
        }
    print(json.dumps({"benchmark": "generation", "threads": options.threads, **result}))


if __name__ == "__main__":
    main()
