"""The patch encoder: pixels to a grid of patch states.

Three convolutions of stride 2 in place of one of stride 8: small transformers learn from pictures much faster behind
such a stem (Xiao et al. 2021, arXiv:2106.14881). Normalised over the batch: with statistics of each picture alone the
shapes of easy-VQA are learnt in three times the steps.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

STRIDES = 3


class PatchEncoder(nn.Module):
    """Pixels (N, 3, S, S) to patch states (N, patches, width), patches = (S / 8)^2, in fp32."""

    def __init__(self, picture_size: int, width: int, *, seed: int) -> None:
        super().__init__()
        widths = [3, *(width >> halvings for halvings in reversed(range(STRIDES)))]
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for before, after in pairwise(widths):
                layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.GELU()]
        self.stem = nn.Sequential(*layers)
        self.picture_size, self.width, self.num_patches = picture_size, width, (picture_size >> STRIDES) ** 2
        self.position = nn.Parameter(torch.zeros(self.num_patches, width))

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.float() / 127.5 - 1
        states: Tensor = self.stem(scaled).flatten(2).transpose(1, 2)
        return states + self.position
