"""The parts of a CPU's training step against the plain formulas, which any other device and every inference uses."""

import pytest
import torch

from lm_core.model import fused, kernels
from lm_core.model.attention import attention_by_formula
from lm_core.model.build import build_model
from lm_core.model.losses import MIN_CHUNK_ROWS, _gradient, _gradient_in_one_pass
from lm_core.model.row_threads import num_parts
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal", init_std=0.2)
VARIANTS = [{}, {"num_kv_heads": 4}, {"qk_norm": False}, {"activation": "gelu"}, {"tie_embeddings": False}]


def gradients(changes, dtype, tokens):
    model = build_model(CONFIG.model_copy(update=changes), vocab_size=50, context_length=64, seed=1)
    model.compute_dtype = dtype
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def plain_gradients(changes, dtype, tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "suits", lambda x: False)
        patch.setattr("lm_core.model.losses.suits", lambda x: False)
        return gradients(changes, dtype, tokens)


def relative_error(mine, exact):
    return {name: float((mine[name] - exact[name]).norm() / exact[name].norm()) for name in exact}


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_gradients_are_those_of_the_plain_formulas(changes):
    tokens = torch.randint(0, 50, (3, 42), generator=torch.Generator().manual_seed(2))
    exact = plain_gradients(changes, torch.float32, tokens)
    assert max(relative_error(gradients(changes, torch.float32, tokens), exact).values()) < 1e-5


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_gradients_in_bf16_are_as_near_to_the_exact_ones_as_the_plain_formulas_are(changes):
    tokens = torch.randint(0, 50, (8, 42), generator=torch.Generator().manual_seed(2))
    exact = plain_gradients(changes, torch.float32, tokens)
    plain = relative_error(plain_gradients(changes, torch.bfloat16, tokens), exact)
    mine = relative_error(gradients(changes, torch.bfloat16, tokens), exact)
    assert sum(mine.values()) < 1.25 * sum(plain.values())
    assert max(mine.values()) < 2 * max(plain.values())


@pytest.mark.parametrize("length", [1, 7, 130])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_attention_equals_its_formula_and_so_do_its_gradients(num_kv_heads, length):
    torch.manual_seed(0)
    q = torch.randn(2, 4, length, 8, requires_grad=True)
    k, v = (torch.randn(2, num_kv_heads, length, 8, requires_grad=True) for _ in range(2))
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    fast, slow = fused.causal_attention(q, k, v), attention_by_formula(q, k, v, visible)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(fast)
    for mine, oracle in zip(
        torch.autograd.grad((fast * weights).sum(), (q, k, v)),
        torch.autograd.grad((slow * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_its_gradient_by_the_logits(smoothing):
    torch.manual_seed(0)
    logits, targets = 30 * torch.randn(70, 33), torch.randint(0, 33, (70,))
    loss, gradient = _gradient(logits, targets, smoothing)
    in_one_pass = _gradient_in_one_pass(logits.clone(), targets, smoothing)
    torch.testing.assert_close(in_one_pass[0], loss)
    torch.testing.assert_close(in_one_pass[1], gradient, atol=1e-6, rtol=1e-5)


def test_rounding_to_bf16_is_that_of_torch():
    x = torch.randn(200, 8) * torch.logspace(-30, 30, 200)[:, None]
    total, weight = torch.zeros(200, 8), torch.ones(8)
    # The gradient of the branch is that of the stream, rounded; with a zero norm nothing else is added.
    d_branch = torch.empty(200, 8, dtype=torch.bfloat16)
    zeros = torch.zeros(200, 8, dtype=torch.bfloat16)
    kernels.over_rows(
        kernels.add_norm_backward, 200, total, weight, torch.ones(200), x, zeros, torch.empty(200, 8), d_branch,
        torch.zeros(num_parts(200), 8),
    )  # fmt: skip
    assert torch.equal(d_branch, x.bfloat16())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    logits = torch.randn(70, 33)
    logits[3, 5] = bad
    loss, _ = _gradient_in_one_pass(logits.clone(), torch.zeros(70, dtype=torch.int64), 0.0)
    assert not loss.isfinite()
    q = torch.randn(1, 1, 9, 8, requires_grad=True)
    broken = torch.randn(1, 1, 9, 8)
    broken[0, 0, 4, 2] = bad
    assert not fused.causal_attention(q, broken, torch.randn(1, 1, 9, 8))[0, 0, 4:].isfinite().all()


def test_two_threads_compute_what_one_does():
    tokens = torch.randint(0, 50, (6, 42), generator=torch.Generator().manual_seed(2))
    one = gradients({}, torch.float32, tokens)
    torch.set_num_threads(2)
    try:
        two = gradients({}, torch.float32, tokens)
        again = gradients({}, torch.float32, tokens)
    finally:
        torch.set_num_threads(1)
    assert max(relative_error(two, one).values()) < 1e-5
    assert all(torch.equal(two[name], again[name]) for name in two)


def test_inference_and_compilation_take_the_plain_formulas():
    x = torch.randn(2, 3)
    assert fused.can_fuse(x)
    assert not fused.can_fuse(x.double())
    with torch.no_grad():
        assert not fused.can_fuse(x)
    # A compiler sees one graph without a break: nothing of the kernels is in it.
    linear = torch.nn.Linear(3, 3)
    compiled = torch.compile(lambda x: linear(x) * (2.0 if fused.can_fuse(x) else 1.0), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), linear(x))


def test_a_large_vocabulary_never_has_all_its_logits_in_memory():
    model = build_model(CONFIG, vocab_size=65_536, context_length=64, seed=1)
    tokens = torch.randint(0, 65_536, (64, 65))
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else (out,)
            sizes = [part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor)]
            largest = max(largest, *sizes, 0)
            return out

    with Sizes():
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    all_logits = 64 * 64 * 65_536 * 4
    assert largest <= 65_536 * MIN_CHUNK_ROWS * 4 < all_logits / 10


def test_a_compiled_block_is_one_graph_with_the_same_gradients():
    tokens = torch.randint(0, 50, (3, 42), generator=torch.Generator().manual_seed(2))
    model = build_model(CONFIG, vocab_size=50, context_length=64, seed=1)
    for block in model.blocks():
        block.compile(backend="eager", fullgraph=True)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    mine = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert max(relative_error(mine, gradients({}, torch.float32, tokens)).values()) < 1e-5
