"""Muon's steps are orthogonal part by part, and as long as those of torch.optim.Muon."""

import pytest
import torch
from torch import nn

from lm_core.model.build import build_model
from lm_core.training.config import ModelConfig
from lm_core.training.muon import WHOLE, Cut, Muon, cuts_of, in_parts, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 80), (2, 80, 24)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_come_to_one(shape, scale):
    parts = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    u, _, v = torch.linalg.svd(parts, full_matrices=False)
    made = orthogonalise(parts).float()
    values = torch.linalg.svdvals(made)
    assert values[:, :-4].min() > 0.6  # the last ones of a square matrix lie below what the polynomials lift
    assert values.max() < 1.6
    nearest = u @ v
    assert (made * nearest).sum() / made.norm() / nearest.norm() > 0.95


def test_nothing_comes_of_nothing():
    assert orthogonalise(torch.zeros(2, 3, 4)).abs().max() == 0


@pytest.mark.parametrize("cut", [WHOLE, Cut(0, 8), Cut(1, 8)])
@pytest.mark.parametrize("shape", [(24, 24), (48, 24), (24, 48)])
def test_a_step_is_as_long_as_that_of_torch(cut, shape):
    start, gradient = torch.zeros(shape), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    Muon([ours], lambda _: cut, lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    moved, wanted = ours.detach(), theirs.detach()
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1, abs=0.2)
    assert float((moved * wanted).sum() / moved.norm() / wanted.norm()) > (0.95 if cut is WHOLE else 0.7)


def test_parts_are_made_orthogonal_by_themselves():
    gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    whole = nn.Parameter(torch.zeros(24, 16))
    whole.grad = gradient.clone()
    Muon([whole], lambda _: Cut(0, 8, share=0.5), lr=1.0, momentum=0.9, weight_decay=0.0).step()
    for rows in range(0, 24, 8):
        alone = nn.Parameter(torch.zeros(8, 16))
        alone.grad = gradient[rows : rows + 8].clone()
        Muon([alone], lambda _: WHOLE, lr=0.5, momentum=0.9, weight_decay=0.0).step()
        assert torch.allclose(whole[rows : rows + 8], alone, rtol=0.02, atol=1e-4)


def test_heads_and_the_feed_forward_layer_are_cut_and_nothing_else():
    config = ModelConfig(num_layers=1, d_model=32, num_heads=4, num_kv_heads=2, head_width=16, d_ff=128)
    model = build_model(config, vocab_size=50, context_length=8, seed=0)
    cuts = cuts_of(model)
    found = {name: (*cuts[weight][:2],) for name, weight in model.named_parameters() if weight in cuts}
    prefix = "layers.0."
    assert found == {
        **{f"{prefix}self_attn.{name}_proj.weight": (0, 16) for name in "qkv"},
        f"{prefix}self_attn.o_proj.weight": (1, 16),
        **{f"{prefix}mlp.{name}_proj.weight": (0, 64) for name in ("gate", "up")},
        f"{prefix}mlp.down_proj.weight": (1, 64),
    }
    for name, weight in model.named_parameters():
        if weight in cuts:
            parts = in_parts(weight, cuts[weight])
            assert parts.numel() == weight.numel()
            assert parts.data_ptr() == weight.data_ptr(), name
    odd = build_model(config.model_copy(update={"d_ff": 131}), vocab_size=50, context_length=8, seed=0)
    assert {cut.width for cut in cuts_of(odd).values()} == {0, 16}
