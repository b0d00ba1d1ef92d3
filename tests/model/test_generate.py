import pytest
import torch

from lm_core.errors import UserError
from lm_core.model.build import build_model
from lm_core.model.conversation import until
from lm_core.model.generate import generate, stream
from lm_core.model.sampling import Sampling, choose, choose_by_formula
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal", init_std=0.3)
PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8]]


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, vocab_size=50, context_length=32, seed=3).eval()


def test_cached_logits_equal_the_uncached_forward(model):
    tokens = torch.randint(0, 50, (2, 12))
    cache = model.new_cache(torch.tensor([0, 0]), 12)
    parts = [model.hidden(tokens[:, :5], cache), *(model.hidden(tokens[:, t : t + 1], cache) for t in range(5, 12))]
    torch.testing.assert_close(model.logits(torch.cat(parts, 1)), model(tokens), atol=1e-4, rtol=1e-4)


def test_a_row_is_what_it_would_be_alone(model):
    together = generate(model, PROMPTS, max_new_tokens=12)
    assert together == [generate(model, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["decoder", "vanilla"])
def test_a_row_whose_context_is_full_ends_and_the_others_go_on(kind):
    changes = {} if kind == "decoder" else {"kind": kind, "num_kv_heads": 4, "activation": "gelu"}
    model = build_model(CONFIG.model_copy(update=changes), vocab_size=50, context_length=16, seed=3).eval()
    prompts = [list(range(15)), [7], list(range(9))]
    together = generate(model, prompts, max_new_tokens=30)
    assert [len(row) for row in together] == [1, 15, 7]
    assert together == [generate(model, [prompt], max_new_tokens=30)[0] for prompt in prompts]


def test_greedy_equals_the_argmax_of_the_whole_forward(model):
    ids = list(PROMPTS[0])
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, [PROMPTS[0]], max_new_tokens=8)[0] == ids[5:]


def test_seed_decides_and_stop_ids_end(model):
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_k": 20, "top_p": 0.95}
    first = generate(model, PROMPTS, seed=1, **options)
    assert first == generate(model, PROMPTS, seed=1, **options) != generate(model, PROMPTS, seed=2, **options)
    alone = list(stream(model, PROMPTS[0], max_new_tokens=6))
    assert generate(model, [PROMPTS[0]], max_new_tokens=6, stop_ids=[alone[3]])[0] == alone[: alone.index(alone[3])]


@pytest.mark.parametrize(
    ("sampling", "left"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.5}, {0}), ({"min_p": 0.2}, {0, 1}), ({"repetition_penalty": 100.0}, {1, 2})],
)
def test_only_the_tokens_that_sampling_leaves_are_drawn(sampling, left):
    logits = torch.tensor([[3.0, 2.0, 1.0, -5.0]]).repeat(200, 1)
    seen = torch.tensor([[True, False, False, True]]).repeat(200, 1)
    sampling = Sampling(temperature=1.0, **({"top_k": 2} | sampling if "repetition_penalty" in sampling else sampling))
    uniform = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    assert set(choose(logits, sampling, uniform, seen).tolist()) == left


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7},
        {"temperature": 1e-9},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 2.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.5, "min_p": 0.05},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.4},
        {"repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_the_compiled_choice_is_that_of_the_formula(sampling):
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(500, 61, generator=generator)
    seen = torch.rand(500, 61, generator=generator) < 0.2
    uniform = torch.rand(500, dtype=torch.float64, generator=generator)
    sampling = Sampling(**sampling)
    assert torch.equal(choose(logits, sampling, uniform, seen), choose_by_formula(logits, sampling, uniform, seen))


def test_of_equal_tokens_the_first_stay_and_draws_have_their_probabilities():
    equal, uniform = torch.zeros(1000, 8), torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    for way in (choose, choose_by_formula):
        drawn = way(equal, Sampling(temperature=1.0, top_p=0.3), uniform, None)
        assert drawn.bincount(minlength=8).tolist() == [334, 333, 333, 0, 0, 0, 0, 0]
        drawn = way(equal + torch.arange(8).log1p(), Sampling(temperature=1.0), uniform, None)
        torch.testing.assert_close(drawn.bincount().double(), torch.arange(1, 9).double() * 1000 / 36, atol=1.5, rtol=0)


def test_a_stop_string_over_several_pieces_ends_the_text():
    assert "".join(until(iter(["ab", "cE", "ND", "x"]), ["END"])) == "abc"
    assert "".join(until(iter(["ab", "cE", "x"]), ["END"])) == "abcEx"
    assert list(until(iter(["a", "b"]), [])) == ["a", "b"]


def test_vanilla_generates_by_the_whole_forward():
    config = CONFIG.model_copy(update={"kind": "vanilla", "num_kv_heads": 4, "activation": "gelu"})
    model = build_model(config, vocab_size=50, context_length=32, seed=3).eval()
    together = generate(model, PROMPTS, max_new_tokens=5)
    assert together == [generate(model, [prompt], max_new_tokens=5)[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.3},
        {"temperature": 1, "min_p": 0.1},
    ],
)
def test_sampling_with_the_cache_draws_what_it_would_without(model, sampling):
    found = generate(model, [PROMPTS[0]], max_new_tokens=16, seed=5, **sampling)[0]
    generator, settings = torch.Generator().manual_seed(5), Sampling(**sampling)
    ids = list(PROMPTS[0])
    for _ in range(16):
        seen = torch.zeros(1, 50, dtype=torch.bool)
        seen[0, ids] = True
        uniform = torch.rand(1, dtype=torch.float64, generator=generator)
        ids += choose_by_formula(model(torch.tensor([ids]))[:, -1], settings, uniform, seen).tolist()
    assert found == ids[len(PROMPTS[0]) :]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"max_new_tokens": 0},
    ],
)
def test_sampling_out_of_bounds_is_refused_in_one_line(model, sampling):
    (name,) = sampling
    with pytest.raises(UserError, match=name) as error:
        generate(model, PROMPTS, **{"max_new_tokens": 1, **sampling})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prompts", [[], [[]], [list(range(32))], [[3, 50]], [[-1]]])
def test_impossible_prompts_are_refused_in_one_line(model, prompts):
    with pytest.raises(UserError) as error:
        generate(model, prompts, max_new_tokens=1)
    assert "\n" not in str(error.value)
