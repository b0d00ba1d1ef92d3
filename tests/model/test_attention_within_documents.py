"""Several documents in a window: with attention within documents, each is computed as if it stood alone."""

import pytest
import torch

from lm_core.model.attention import (
    attention_by_blocks,
    attention_by_formula,
    blocks_within,
    causal_attention,
    first_of_document,
    visible_within,
)
from lm_core.model.build import build_model
from lm_core.model.losses import IGNORE
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal", init_std=0.2)


@pytest.fixture
def model():
    return build_model(CONFIG, vocab_size=50, context_length=640, seed=1)


def documents(*lengths):
    """Documents, and where each token's begins when all stand in one window."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randint(0, 50, (length,), generator=generator) for length in lengths]
    first = torch.cat([torch.full((length,), sum(lengths[:number])) for number, length in enumerate(lengths)])
    return parts, first[None]


def test_first_of_document():
    starts = torch.tensor([[False, True, False, True, True, False], [True, False, False, False, False, True]])
    assert first_of_document(starts).tolist() == [[0, 1, 1, 3, 4, 4], [0, 0, 0, 0, 0, 5]]


@pytest.mark.parametrize("training", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("lengths", [(20, 1, 30), (7, 9), (400, 200)], ids=str)
def test_a_packed_window_is_its_documents_one_by_one(model, lengths, training):
    parts, first = documents(*lengths)
    with torch.set_grad_enabled(training):
        packed = model.logits(model.hidden_within(torch.cat(parts)[None], first))
        for part, logits in zip(parts, packed[0].split(lengths), strict=True):
            torch.testing.assert_close(logits, model(part[None])[0], atol=2e-5, rtol=1e-5)


def test_so_are_its_gradients(model):
    parts, first = documents(20, 1, 30)
    targets = torch.cat([torch.cat((part[1:], torch.tensor([IGNORE]))) for part in parts])[None]
    model.loss_sum(torch.cat(parts)[None], targets, beside=first).backward()
    packed = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    sum(model.loss_sum(part[None, :-1], part[None, 1:]) for part in parts if len(part) > 1).backward()
    for mine, alone in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(mine, alone.grad, atol=2e-4, rtol=1e-4)


def test_the_textbook_transformer_attends_to_whole_windows():
    vanilla = ModelConfig(kind="vanilla", activation="gelu", num_layers=1, d_model=16, num_heads=2, num_kv_heads=2)
    model = build_model(vanilla, vocab_size=50, context_length=8, seed=1)
    with pytest.raises(TypeError, match="VanillaTransformer"):
        model.loss_sum(torch.ones(1, 8, dtype=int), torch.ones(1, 8, dtype=int), beside=torch.zeros(1, 8, dtype=int))


def test_flex_attention_sees_the_same():
    torch.manual_seed(0)
    first = first_of_document(torch.rand(2, 256) < 0.05)
    q, k, v = torch.randn(2, 4, 256, 16), torch.randn(2, 2, 256, 16), torch.randn(2, 2, 256, 16)
    by_formula = attention_by_formula(q, k, v, visible_within(first))
    for found in (attention_by_blocks(q, k, v, blocks_within(first)), causal_attention(q, k, v, first)):
        torch.testing.assert_close(found, by_formula, atol=1e-5, rtol=1e-5)


@pytest.mark.exhaustive
def test_compiled_it_is_flex_attention():
    """As on a GPU; a CPU compiles it for inference only."""
    torch.manual_seed(0)
    first = first_of_document(torch.rand(2, 256) < 0.05)
    q, k, v = torch.randn(2, 4, 256, 16), torch.randn(2, 2, 256, 16), torch.randn(2, 2, 256, 16)
    with torch.no_grad():
        found = torch.compile(causal_attention)(q, k, v, first, blocks_within(first))
    torch.testing.assert_close(found, attention_by_formula(q, k, v, visible_within(first)), atol=1e-5, rtol=1e-5)
