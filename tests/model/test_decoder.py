"""The decoder against its formulas, and against finite differences."""

import pytest
import torch
from torch.nn import functional as F

from lm_core.model.attention import attention_by_formula, causal_attention
from lm_core.model.build import build_model
from lm_core.model.decoder import RMSNorm
from lm_core.model.losses import IGNORE, cross_entropy_sum, token_cross_entropy
from lm_core.training.config import ModelConfig

SMALL = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal", init_std=0.2)


def small_model(**changes):
    return build_model(SMALL.model_copy(update=changes), vocab_size=50, context_length=16, seed=1)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_attention_equals_its_formula_and_so_do_its_gradients(num_kv_heads):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, num_kv_heads, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    fast, slow = causal_attention(q, k, v), attention_by_formula(q, k, v, visible)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-6)
    weights = torch.randn_like(fast)
    for mine, oracle in zip(
        torch.autograd.grad((fast * weights).sum(), (q, k, v)),
        torch.autograd.grad((slow * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, atol=1e-6, rtol=1e-6)


def test_rms_norm_gradient_against_finite_differences():
    x = torch.randn(3, 6, requires_grad=True)
    norm = RMSNorm(6, 1e-6)
    torch.nn.init.normal_(norm.weight)
    weights = torch.randn(3, 6)
    oracle = F.rms_norm(x, (6,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x, torch.float32), oracle)
    mine = torch.autograd.grad((norm(x, torch.float32) * weights).sum(), (x, norm.weight))
    theirs = torch.autograd.grad((oracle * weights).sum(), (x, norm.weight))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_cross_entropy_equals_torch(monkeypatch, smoothing):
    monkeypatch.setattr("lm_core.model.losses.CHUNK_LOGITS", 16 * 20)
    monkeypatch.setattr("lm_core.model.losses.MIN_CHUNK_ROWS", 16)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(0, 20, (50,))
    targets[::7] = IGNORE
    mine = cross_entropy_sum(hidden, weight, targets, dtype=torch.float32, label_smoothing=smoothing)
    logits = hidden @ weight.T
    oracle = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(mine, oracle)
    for a, b in zip(
        torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(oracle, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    each = token_cross_entropy(hidden, weight, targets, dtype=torch.float32)
    torch.testing.assert_close(each, F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE))


@pytest.mark.parametrize("kind", ["decoder", "vanilla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_predict_is_a_loss_of_zero_with_a_gradient_of_zero(kind, dtype):
    model = small_model(kind=kind, activation="gelu", num_kv_heads=4)
    model.compute_dtype = dtype
    tokens, targets = torch.zeros(2, 8, dtype=torch.int64), torch.full((2, 8), IGNORE)
    loss = model.loss_sum(tokens, targets)
    loss.backward()
    assert float(loss.detach()) == 0
    # Every parameter has a gradient: processes that train together wait for each of them.
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    with torch.no_grad():
        assert float(model.loss_sum(tokens, targets)) == 0
    assert model.token_losses(tokens, targets).shape == (2, 8)


def test_whole_model_against_finite_differences():
    model = small_model()
    tokens = torch.randint(0, 50, (2, 9))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for name in ("layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight", "layers.0.input_layernorm.weight"):
        parameter = model.get_parameter(name)
        place = parameter.grad.abs().flatten().argmax()
        losses = []
        for shift in (1e-2, -2e-2):
            parameter.data.view(-1)[place] += shift
            losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]).item())
        parameter.data.view(-1)[place] += 1e-2
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(parameter.grad.view(-1)[place]), rel=0.02)


def test_bf16_gradients_are_the_fp32_ones_within_rounding():
    exact, rounded = small_model(), small_model()
    rounded.compute_dtype = torch.bfloat16
    tokens = torch.randint(0, 50, (4, 17))
    for model in (exact, rounded):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for (name, a), (_, b) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0) > 0.99, name


@pytest.mark.parametrize("kind", ["decoder", "vanilla"])
def test_no_position_sees_the_future(kind):
    model = build_model(
        SMALL.model_copy(update={"kind": kind, "num_kv_heads": 4, "activation": "gelu"}),
        vocab_size=50,
        context_length=16,
        seed=1,
    ).eval()
    tokens = torch.randint(0, 50, (1, 10))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize(("init", "std"), [("normal", 0.2), ("uniform", 0.2), ("scaled", 0.1), ("zero_output", 0.0)])
def test_initial_weights_have_the_spread_that_was_asked_for(init, std):
    model = small_model(init=init)
    assert float(model.get_parameter("layers.0.mlp.down_proj.weight").std()) == pytest.approx(std, rel=0.1)
    assert float(model.get_parameter("layers.0.mlp.up_proj.weight").std()) == pytest.approx(0.2, rel=0.1)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before():
    first = small_model().state_dict()
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), small_model().state_dict().values(), strict=True))


def test_untied_embeddings_and_llama_layout_are_configuration():
    model = small_model(tie_embeddings=False, qk_norm=False)
    names = {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" in names
    assert not any("q_norm" in name for name in names)


def test_activation_checkpointing_changes_no_gradient():
    plain, recomputed = small_model().train(), small_model().train()
    recomputed.activation_checkpointing = True
    tokens = torch.randint(0, 50, (2, 9))
    for model in (plain, recomputed):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
