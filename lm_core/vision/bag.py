"""Convolutions for the picture, a bag of words for the question, a small network on their product.

The classical baseline of easy-VQA, and the encoder's school: from what it has learnt to see here, a decoder's fusion
starts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name for it

from lm_core.model.language_model import LanguageModel
from lm_core.training.config import ModelConfig
from lm_core.vision.encoder import PatchEncoder
from lm_core.vision.fusion import Seeing, pooled


class BagAnswerer(Seeing, LanguageModel):
    """Answers from a picture and the set of words asked; rows as of `VisualDecoder`, the vocabulary is the labels.

    Args:
        num_words: size of the tokenizer's vocabulary.
        pad: id of padding, which counts as no word.
    """

    def __init__(
        self, *, picture_size: int, encoder_width: int, width: int, num_words: int, pad: int, num_labels: int, seed: int
    ) -> None:
        one_layer = ModelConfig(num_layers=1, d_model=width, num_heads=1, num_kv_heads=1)
        super().__init__(one_layer, vocab_size=num_labels, context_length=1 << 16)
        self.shape = {
            "picture_size": picture_size, "encoder_width": encoder_width, "width": width,
            "num_words": num_words, "pad": pad, "num_labels": num_labels,
        }  # fmt: skip
        self.encoder = PatchEncoder(picture_size, encoder_width, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(num_words, width, padding_idx=pad)
            self.asked = nn.Linear(width, width)
            self.seen = nn.Linear(2 * encoder_width, width)
            self.mixed = nn.Sequential(nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.head = nn.Parameter(torch.randn(num_labels, width) * width**-0.5)
        self.open_bank(picture_size)

    def hidden(self, tokens: Tensor) -> Tensor:
        """States (B, T, width), at every position the same: all words of the row, with the picture."""
        patches, owner = self.patches_of(tokens)
        seen = F.gelu(self.seen(pooled(patches)))[owner]
        asked = F.gelu(self.asked(self.words(tokens[:, 1:]).sum(1)))
        mixed = F.gelu(self.mixed(torch.cat((seen * asked, asked, seen), -1)))
        return mixed[:, None].expand(-1, tokens.shape[1], -1)

    @property
    def output_weight(self) -> Tensor:
        return self.head

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()
