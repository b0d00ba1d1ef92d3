"""The resume grid: a run killed by SIGKILL and run again ends with the weights of an undisturbed one, in every mode.

    python -m tests.benchmarks.resume_grid [--eager]

{1, 2 threads} x {eager, compile} x {AdamW, Muon} x {fp32, bf16}; prints a line for each and one JSON line last.
"""

import argparse
import json
import tempfile
from pathlib import Path

from lm_core.artifact import TokenDataset, Tokenizer
from lm_core.tokenizer import train_tokenizer
from lm_core.tokens import tokenize
from lm_core.training.config import TokenizeConfig, TokenizerConfig
from tests.training.corpus_files import docstrings, new_build, valid_corpus
from tests.training.interrupted import MODES, both_ways, name_of


def dataset(root: Path) -> tuple[TokenDataset, Tokenizer]:
    corpus = valid_corpus(root / "corpus", docstrings())
    first, second = new_build(root, "tokenizer"), new_build(root, "tokens")
    train_tokenizer(first, TokenizerConfig(vocab_size=400), corpus=corpus)
    tokenizer = Tokenizer(first.folder, "", "", "")
    tokenize(second, TokenizeConfig(context_length=32), corpus=corpus, tokenizer=tokenizer)
    return TokenDataset(second.folder, "", "", ""), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled modes, which take longest")
    options = parser.parse_args()
    exact: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokens, tokenizer = dataset(root)
        for number, mode in enumerate(mode for mode in MODES if not (options.eager and mode[1])):
            undisturbed, resumed = both_ways(tokens, tokenizer, root / str(number), mode)
            exact[name_of(mode)] = undisturbed["weights_sha256"] == resumed["weights_sha256"]
            said = "identical" if exact[name_of(mode)] else "DIFFERENT"
            print(f"{name_of(mode):<36} resumed from step {resumed['resumed_from_step']:>3}: {said}", flush=True)
    print(json.dumps({"modes": len(exact), "identical": sum(exact.values()), "exact": exact}))


if __name__ == "__main__":
    main()
