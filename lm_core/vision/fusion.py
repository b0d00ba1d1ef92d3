"""A decoder that sees: the picture as prefix tokens, or through cross-attention between the blocks.

A row of tokens begins with the number of its picture in the bank; everything else is a language model's: the training
loop, the losses, the classifier on top stay what they are. A picture that several rows of a batch ask about is encoded
once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name for it

from lm_core.errors import UserError
from lm_core.model.decoder import Decoder, Linear
from lm_core.model.language_model import LanguageModel
from lm_core.vision.config import VisionConfig
from lm_core.vision.encoder import PatchEncoder
from lm_core.vision.pictures import Pixels

BLOCKS_PER_LOOK = 2  # cross-attention follows every second block, from the first on


class Seeing(nn.Module):
    """What looks at numbered pictures: an encoder, and the bank of pixels that rows number."""

    bank: Tensor
    encoder: PatchEncoder

    def open_bank(self, picture_size: int) -> None:
        """An empty bank: no part of the weights."""
        empty = torch.zeros(0, 3, picture_size, picture_size, dtype=torch.uint8)
        self.register_buffer("bank", empty, persistent=False)

    def look_at(self, pixels: Pixels) -> None:
        """Take pictures (N, 3, S, S) as the bank that rows number."""
        self.bank = torch.from_numpy(pixels).to(self.bank.device)

    def patches_of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch states of the different pictures of rows (B, T), and which of them each row (B,) is about."""
        numbers, owner = tokens[:, 0].unique(return_inverse=True)
        return self.encoder(self.bank[numbers]), owner


def pooled(patches: Tensor) -> Tensor:
    """What there is in a picture wherever it stands: mean and maximum over patches, (N, P, width) to (N, 2 width)."""
    return torch.cat((patches.mean(1), patches.amax(1)), -1)


class Projector(nn.Module):
    """Patches (N, P, width), pooled, to the prefix (N, tokens, D)."""

    def __init__(self, width: int, num_tokens: int, d_model: int) -> None:
        super().__init__()
        self.shape = (num_tokens, d_model)
        self.linear = nn.Linear(2 * width, num_tokens * d_model)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, patches: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(pooled(patches)).unflatten(1, self.shape))
        return out


class CrossAttention(nn.Module):
    """What the stream (B, T, D) reads from normalised patches; nothing at first, so the base is kept."""

    def __init__(self, d_model: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.patch_norm = nn.LayerNorm(d_model), nn.LayerNorm(width)
        self.q_proj, self.o_proj = Linear(d_model, d_model), Linear(d_model, d_model)
        self.kv_proj = Linear(width, 2 * d_model)
        nn.init.zeros_(self.o_proj.weight)

    def forward(self, x: Tensor, patches: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
        """Add to x; patches (N, patches, width) are those of the pictures, row b looks at picture owner[b]."""
        heads = (self.num_heads, -1)
        q = self.q_proj(self.norm(x).to(dtype)).unflatten(-1, heads).transpose(1, 2)
        k, v = self.kv_proj(self.patch_norm(patches).to(dtype)).chunk(2, -1)
        k, v = (part.unflatten(-1, heads).transpose(1, 2)[owner] for part in (k, v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.o_proj(read)


class VisualDecoder(Seeing, LanguageModel):
    """A decoder whose rows begin with the number of a picture.

    Args:
        encoder: starts from what it has learnt elsewhere.

    Raises:
        UserError: for an architecture other than the decoder.
    """

    def __init__(self, trunk: LanguageModel, config: VisionConfig, encoder: PatchEncoder, *, seed: int) -> None:
        if not isinstance(trunk, Decoder):
            raise UserError("pictures need model.kind=decoder as their base")
        self_extra = config.num_prefix_tokens if config.fusion == "prefix" else 1
        # A row's first token is the picture's number, which stands for all tokens of the prefix.
        length = trunk.context_length - self_extra + 1
        super().__init__(trunk.config, vocab_size=trunk.vocab_size, context_length=length)
        self.num_extra, self.vision = self_extra, config
        self.trunk, self.encoder = trunk, encoder
        d_model, width = trunk.config.d_model, config.encoder_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.fusion == "prefix":
                self.projector = Projector(width, config.num_prefix_tokens, d_model)
            else:
                self.opening = nn.Parameter(torch.randn(1, d_model))
                looking = len(trunk.layers[::BLOCKS_PER_LOOK])
                layers = (CrossAttention(d_model, width, trunk.config.num_heads) for _ in range(looking))
                self.cross = nn.ModuleList(layers)
        self.open_bank(config.picture_size)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states (B, T, D) of rows (B, T): a picture's number, then text."""
        patches, owner = self.patches_of(tokens)
        assert isinstance(self.trunk, Decoder)
        text = self.trunk.embed_tokens(tokens[:, 1:])
        self.trunk.compute_dtype = self.compute_dtype
        if self.vision.fusion == "prefix":
            prefix = self.projector(patches)[owner]
            return self.trunk.hidden_of(torch.cat((prefix, text), 1))[:, self.num_extra - 1 :]

        def look(layer: int, x: Tensor) -> Tensor:
            if layer % BLOCKS_PER_LOOK:
                return x
            out: Tensor = self.cross[layer // BLOCKS_PER_LOOK](x, patches, owner, self.compute_dtype)
            return out

        opening = self.opening.expand(len(text), 1, -1)
        return self.trunk.hidden_of(torch.cat((opening, text), 1), after_block=look)

    @property
    def output_weight(self) -> Tensor:
        return self.trunk.output_weight

    def blocks(self) -> nn.ModuleList:
        looking = self.cross if self.vision.fusion == "cross_attention" else ()
        return nn.ModuleList([*self.trunk.blocks(), *looking])
