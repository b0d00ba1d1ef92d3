"""A classifier on top of a language model's trunk, and fine-tuned checkpoints on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name for it

from lm_core.downstream.subwords import BagOfSubwords
from lm_core.errors import IntegrityError
from lm_core.model.decoder import Decoder
from lm_core.model.language_model import LanguageModel
from lm_core.model.losses import IGNORE, cross_entropy_sum
from lm_core.model.weights import load_model, save_model

HEAD, LABELS, MEMBERS = "head.safetensors", "labels.json", "members"


class PooledClassifier(LanguageModel):
    """A language model whose vocabulary is a set of labels.

    State t is a summary of the trunk's states up to t, so the row's last real token sees its whole text, and padding
    to the right changes nothing. With the head as the output embedding, loss and training loop stay those of any
    language model.

    A bag of subwords beside the trunk is a second voice, and they learn in one of two ways. Labels: each alone, and
    the answer is the mean of their logits (trained together the bag would explain the training texts and the trunk
    learn little: sentiment, validation, 0.790 together, 0.810 apart). Residual: the bag is fitted first, the trunk
    learns what is left to say, and the answer is their sum. For that it must hear the bag err as it will on new texts:
    of each training text it hears a bag that has not seen the text (`loss_sum`, `subwords.out_of_fold`).

    Args:
        pooling: mean: the mean of the last states. mean_max: beside it their maximum. all_layers: means of the
            streams after every block (a decoder's only), and the maximum.
        num_buckets: size of the bag of subwords beside the trunk (`subwords.py`); 0: none.
        learns: what the trunk learns beside a bag, labels or residual.
    """

    voice: Tensor

    def __init__(
        self,
        trunk: LanguageModel,
        labels: Sequence[str],
        *,
        pooling: str = "mean",
        num_buckets: int = 0,
        learns: str = "labels",
    ) -> None:
        super().__init__(trunk.config, vocab_size=len(labels), context_length=trunk.context_length)
        self.labels, self.pooling, self.num_buckets = tuple(labels), pooling, num_buckets
        self.trunk = trunk
        parts = {"mean": 1, "mean_max": 2}.get(pooling) or (trunk.config.num_layers if self._streams_show else 1) + 1
        self.head = nn.Parameter(torch.zeros(len(labels), parts * trunk.config.d_model))
        self.dropout = nn.Dropout(0.0)
        self.bag = BagOfSubwords(trunk.vocab_size, len(labels), num_buckets) if num_buckets else None
        if num_buckets:
            self.register_buffer("voice", torch.tensor(0.5 if learns == "labels" else 1.0))

    @property
    def _streams_show(self) -> bool:
        return isinstance(self.trunk, Decoder)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Summaries (B, T, parts * D) of the texts up to each token, and the bag's scores of the labels."""
        summaries = self._summaries(tokens)
        return summaries if self.bag is None else torch.cat((summaries, self.bag(tokens)), -1)

    def _summaries(self, tokens: Tensor) -> Tensor:
        self.trunk.compute_dtype = self.compute_dtype
        return torch.cat([self.dropout(part) for part in self._pooled(tokens)], -1)

    def _pooled(self, tokens: Tensor) -> list[Tensor]:
        streams: list[Tensor] = []
        if self.pooling == "all_layers" and isinstance(self.trunk, Decoder):

            def keep(layer: int, stream: Tensor) -> Tensor:
                streams.append(nn.functional.rms_norm(stream.float(), stream.shape[-1:]))
                return stream

            last = self.trunk.hidden_of(self.trunk.embed_tokens(tokens), after_block=keep).float()
            streams[-1] = last
        else:
            last = self.trunk.hidden(tokens).float()
            streams = [last]
        count = torch.arange(1, last.shape[1] + 1, device=last.device)[:, None]
        pooled = [stream.cumsum(1) / count for stream in streams]
        return pooled if self.pooling == "mean" else [*pooled, last.cummax(1).values]

    @property
    def output_weight(self) -> Tensor:
        """The head; with a bag beside it the identity, and both times what a voice counts: their mean or their sum."""
        if self.bag is None:
            return self.head
        identity = torch.eye(len(self.labels), device=self.head.device, dtype=self.head.dtype)
        return torch.cat((self.head, identity), 1) * self.voice

    def blocks(self) -> nn.ModuleList:
        return self.trunk.blocks()

    def loss_sum(
        self, tokens: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, beside: Tensor | None = None
    ) -> Tensor:
        """As of any language model; rows of replayed text have token ids beyond the labels as targets (`replay.py`).

        Args:
            beside: what a bag of subwords says to each row, (B, labels); the row's loss is that of both voices.
        """
        replayed = (targets >= len(self.labels)).any(1)
        if not replayed.any():
            return self._label_loss(tokens, targets, label_smoothing, beside)
        text = targets[replayed]
        self.trunk.compute_dtype = self.compute_dtype
        total = self.trunk.loss_sum(tokens[replayed], torch.where(text == IGNORE, IGNORE, text - len(self.labels)))
        if replayed.all():
            return total
        own = ~replayed
        beside = None if beside is None else beside[own]
        return total + self._label_loss(tokens[own], targets[own], label_smoothing, beside)

    def _label_loss(self, tokens: Tensor, targets: Tensor, label_smoothing: float, beside: Tensor | None) -> Tensor:
        states = self._summaries(tokens)
        if beside is None:
            wanted = targets.flatten()
            return cross_entropy_sum(
                states.flatten(0, 1), self.head, wanted, dtype=self.compute_dtype, label_smoothing=label_smoothing
            )
        row, place = torch.nonzero(targets != IGNORE, as_tuple=True)
        logits = states[row, place] @ self.head.T + beside[row]
        return F.cross_entropy(logits, targets[row, place], reduction="sum", label_smoothing=label_smoothing)

    @torch.no_grad()
    def scores(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, labels) for rows of the given lengths (B,)."""
        states = self.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.logits(states)

    def probabilities(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Probability of each label, (B, labels), for rows of the given lengths (B,)."""
        return self.scores(tokens, lengths).softmax(-1)

    def own_state(self) -> dict[str, Tensor]:
        """Everything besides the trunk."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("trunk.")}


class Ensemble(PooledClassifier):
    """Several classifiers that answer together: the mean of their logits."""

    def __init__(self, members: Sequence[PooledClassifier]) -> None:
        first = members[0]
        super().__init__(first.trunk, first.labels, pooling=first.pooling, num_buckets=first.num_buckets)
        self.members = nn.ModuleList(members)

    @torch.no_grad()
    def scores(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        members = [member for member in self.members if isinstance(member, PooledClassifier)]
        return torch.stack([member.scores(tokens, lengths) for member in members]).mean(0)


def save_finetuned(model: LanguageModel, folder: Path) -> str:
    """Write the trunk as any checkpoint, a classifier's head beside it; returns the SHA-256 of the trunk's file."""
    if isinstance(model, Ensemble):
        for place, member in enumerate(list(model.members)[1:], 1):
            (folder / MEMBERS / str(place)).mkdir(parents=True)
            assert isinstance(member, PooledClassifier)
            save_finetuned(member, folder / MEMBERS / str(place))
        first = model.members[0]
        assert isinstance(first, PooledClassifier)
        return save_finetuned(first, folder)
    if not isinstance(model, PooledClassifier):
        return save_model(model, folder)
    state = {name: value.detach().cpu().contiguous() for name, value in model.own_state().items()}
    save_file(state, folder / HEAD)
    (folder / LABELS).write_text(json.dumps(model.labels, ensure_ascii=False))
    return save_model(model.trunk, folder)


def load_finetuned(folder: Path, *, device: str | torch.device = "cpu") -> LanguageModel:
    """The model that `save_finetuned` wrote: a `PooledClassifier` where there is a head, an `Ensemble` of several.

    Raises:
        IntegrityError: when a head cannot be read or does not fit.
    """
    if not (folder / HEAD).exists():
        return load_model(folder, device=device)
    first = _load_classifier(folder, device)
    others = sorted((folder / MEMBERS).glob("*")) if (folder / MEMBERS).is_dir() else []
    if not others:
        return first
    return Ensemble([first, *(_load_classifier(member, device) for member in others)]).eval()


def _load_classifier(folder: Path, device: str | torch.device) -> PooledClassifier:
    trunk = load_model(folder, device=device)
    try:
        labels = json.loads((folder / LABELS).read_text())
        state = load_file(folder / HEAD)
        buckets = len(state["bag.weight"]) if "bag.weight" in state else 0
        model = PooledClassifier(trunk, labels, pooling=_pooling(state, trunk), num_buckets=buckets)
        if buckets:
            state.setdefault("voice", model.voice)  # checkpoints from before there was a choice
        model.load_state_dict(state | {f"trunk.{name}": value for name, value in trunk.state_dict().items()})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"{folder / HEAD} cannot be read ({error}); fine-tune again") from None
    return model.to(next(trunk.parameters()).device).eval()


def _pooling(state: dict[str, Tensor], trunk: LanguageModel) -> str:
    """How states are pooled, from the width of the head."""
    parts = state["head"].shape[1] // trunk.config.d_model
    return {1: "mean", 2: "mean_max"}.get(parts, "all_layers")
