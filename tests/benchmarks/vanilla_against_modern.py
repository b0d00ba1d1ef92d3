"""The textbook Transformer and the modern decoder side by side: same tokens, same budget, same trainer, three seeds.

    python tests/benchmarks/vanilla_against_modern.py --tokens FOLDER --tokenizer FILE

FOLDER is the artifact of `tokenize`, FILE a tokenizer.json. The last line is JSON: bits per byte of every seed, their
mean, and the half width of its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.runtime import Runtime, fast_precision
from lm_core.store import Build
from lm_core.training.config import ModelConfig, OptimizationConfig, PretrainConfig
from lm_core.training.pretrain import pretrain

SHAPE = {"num_layers": 4, "d_model": 128, "num_heads": 2, "num_kv_heads": 2}
VANILLA = ModelConfig(kind="vanilla", d_ff=512, activation="gelu", init="scaled", **SHAPE)
MODERN = ModelConfig(d_ff=344, **SHAPE)
SYSTEMS = {
    "vanilla_adamw_1e-3": (VANILLA, {"optimizer": "adamw", "learning_rate": 1e-3}),
    "vanilla_adamw_3e-3": (VANILLA, {"optimizer": "adamw", "learning_rate": 3e-3}),
    "vanilla_muon": (VANILLA, {"optimizer": "muon"}),
    "modern_adamw": (MODERN, {"optimizer": "adamw", "learning_rate": 5e-3}),
    "modern_muon": (MODERN, {"optimizer": "muon"}),
}


def train_once(options: argparse.Namespace, model: ModelConfig, changes: dict, seed: int) -> dict:
    optimization = OptimizationConfig(precision=fast_precision(), seed=seed, **changes)
    config = PretrainConfig(
        model=model, optimization=optimization, train_tokens=options.num_tokens, num_evaluations=1,
        validation_tokens=100_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        folder, work = Path(root, "folder"), Path(root, "work")
        folder.mkdir(), work.mkdir()
        build = Build(folder, work, Runtime(workspace=Path(root), num_threads=options.threads))
        tokens = TokenDataset(options.tokens, "", "", "")
        return pretrain(build, config, tokens=tokens, tokenizer=Tokenizer(options.tokenizer.parent, "", "", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--num-tokens", type=int, default=409_600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    options = parser.parse_args()
    result = {}
    for name in options.systems:
        runs = [train_once(options, *SYSTEMS[name], seed) for seed in range(options.seeds)]
        bits = np.array([run["val_bits_per_byte"] for run in runs])
        half = stats.t.ppf(0.975, len(bits) - 1) * stats.sem(bits) if len(bits) > 1 else None
        result[name] = {
            "num_parameters": runs[0]["num_parameters"],
            "bits_per_byte": [round(b, 4) for b in bits.tolist()],
            "mean": round(float(bits.mean()), 4),
            "half_width": half if half is None else round(float(half), 4),
            "tokens_per_second": round(max(run["tokens_per_second"] for run in runs)),
        }
        print(name, result[name], flush=True)
    print(json.dumps({"benchmark": "vanilla_against_modern", "tokens": options.num_tokens, **result}))


if __name__ == "__main__":
    main()
