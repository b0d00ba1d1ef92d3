"""Direct preference optimisation (Rafailov et al. 2023): the better answer of a pair gains on the worse one.

The reference is the model before: how far the tuned one may drift from it is what `beta` sets. The training loop is
the one of everything else; rows of a step are better, worse, better, worse, ...
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name for it

from lm_core.artifact import Checkpoint, DownstreamData
from lm_core.config import identity_of
from lm_core.downstream.config import PreferConfig
from lm_core.downstream.encoding import Row, answer_rows, pad_rows
from lm_core.downstream.forgetting import guard_against_forgetting
from lm_core.downstream.items import read_items
from lm_core.downstream.preference_rules import Pair, pairs_of
from lm_core.errors import UserError
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE
from lm_core.model.weights import load_model, save_model
from lm_core.store import Build
from lm_core.tokenizer import TextTokenizer, load_tokenizer
from lm_core.training.loop import Batch, train

SCORED_PAIRS = 32


class PreferenceModel(LanguageModel):
    """A policy beside its frozen reference; its loss is that of the pairs."""

    def __init__(self, policy: LanguageModel, reference: LanguageModel, beta: float) -> None:
        super().__init__(policy.config, vocab_size=policy.vocab_size, context_length=policy.context_length)
        self.policy, self.beta = policy, beta
        self._reference = [reference]  # no part of the state: it never moves

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.policy.hidden(tokens)

    @property
    def output_weight(self) -> Tensor:
        return self.policy.output_weight

    def blocks(self) -> nn.ModuleList:
        return self.policy.blocks()

    def margins(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Log-odds (pairs,) that the better answer is preferred; rows are better, worse, better, worse, ..."""
        reference = self._reference[0].to(tokens.device)
        with torch.no_grad():
            before = -reference.token_losses(tokens, targets).sum(1)
        gained = self._log_likelihood(tokens, targets) - before
        return self.beta * (gained[0::2] - gained[1::2])

    def _log_likelihood(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Log-likelihood of each row's targets (B,), differentiable: answers are short, so few logits are held."""
        self.policy.compute_dtype = self.compute_dtype
        counted = targets != IGNORE
        logits = self.policy.logits(self.policy.hidden(tokens)[counted])
        found = logits.log_softmax(-1).gather(1, targets[counted][:, None])[:, 0]
        rows = counted.nonzero()[:, 0]
        return torch.zeros(len(tokens), device=tokens.device).index_add(0, rows, found)

    def loss_sum(
        self, tokens: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, beside: Tensor | None = None
    ) -> Tensor:
        """-log sigmoid of the margins, their mean times the number of targets: the loop divides by that."""
        losses = -F.logsigmoid(self.margins(tokens, targets))
        if label_smoothing:  # pairs that may be the wrong way round (Mitchell 2023, conservative DPO)
            losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-self.margins(tokens, targets))
        return losses.mean() * (targets != IGNORE).sum()


def prefer(build: Build, config: PreferConfig, *, base: Checkpoint, examples: DownstreamData) -> Mapping[str, Any]:
    """Tune a fine-tuned model by pairs made from its training items; writes a plain checkpoint.

    Raises:
        UserError: when the items give no pair.
    """
    tokenizer = load_tokenizer(base.file("tokenizer.json"))
    pairs = pairs_of(read_items(examples, None, config.task, "train", build.runtime))[: config.max_pairs]
    held_out = pairs_of(read_items(examples, None, config.task, "validation", build.runtime))[: config.max_pairs]
    if not pairs:
        raise UserError(f"the task {config.task} gives no pairs: every answer breaks a rule itself")
    model = PreferenceModel(load_model(base.folder), load_model(base.folder), config.beta)
    batches = plan_pairs(pair_rows(pairs, tokenizer, model.context_length), config)
    statistics = train(
        model,
        lambda step: pad_rows(batches[step], tokenizer.pad),
        config.optimization,
        num_steps=len(batches),
        build=build,
    )
    model.policy.compute_dtype = model.compute_dtype
    statistics["forgetting"] = guard_against_forgetting(model.policy, base, tokenizer, config)
    statistics["pair_accuracy"] = pair_accuracy(model, held_out or pairs, tokenizer)
    statistics["weights_sha256"] = save_model(model.policy, build.folder)
    shutil.copyfile(base.file("tokenizer.json"), build.folder / "tokenizer.json")
    training = {"config": identity_of(config), "num_steps": statistics["num_steps"], "items": len(pairs)}
    (build.folder / "training.json").write_text(json.dumps(training, indent=1, sort_keys=True))
    return {"task": config.task, "pairs": len(pairs), **statistics}


def pair_rows(pairs: Sequence[Pair], tokenizer: TextTokenizer, context_length: int) -> list[tuple[Row, Row]]:
    """Two rows of tokens for each pair."""
    prompts = [pair.prompt for pair in pairs]
    better = answer_rows(tokenizer, prompts, [pair.better for pair in pairs], context_length)
    worse = answer_rows(tokenizer, prompts, [pair.worse for pair in pairs], context_length)
    return list(zip(better, worse, strict=True))


def plan_pairs(rows: Sequence[tuple[Row, Row]], config: PreferConfig) -> list[list[Row]]:
    """The rows of each step: as many pairs as fit, in an order drawn by the seed, over and over."""
    generator = torch.Generator().manual_seed(config.optimization.seed)
    longest = max(len(row.tokens) for pair in rows for row in pair)
    per_step = max(1, config.optimization.batch_tokens // (2 * (longest + 16)))
    steps: list[list[Row]] = []
    while len(steps) < config.max_steps:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), per_step):
            steps.append([row for i in order[start : start + per_step] for row in rows[i]])
    return steps[: config.max_steps]


@torch.no_grad()
def pair_accuracy(model: PreferenceModel, pairs: Sequence[Pair], tokenizer: TextTokenizer) -> float:
    """Share of pairs whose better answer has gained more than the worse one."""
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(pairs), SCORED_PAIRS):
        rows = pair_rows(pairs[start : start + SCORED_PAIRS], tokenizer, model.context_length)
        batch: Batch = pad_rows([row for pair in rows for row in pair], tokenizer.pad)
        right += int((model.margins(batch.tokens.to(device), batch.targets.to(device)) > 0).sum())
    return round(right / len(pairs), 5)
