"""The compiled step against the decoder's own forward pass."""

import numpy as np
import pytest
import torch

from lm_core.model import continuation
from lm_core.model.build import build_model
from lm_core.model.generate import generate
from lm_core.model.packed import TOKENS_AT_ONCE, PackedSequences, pack
from lm_core.training.config import ModelConfig

CONFIG = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, init="normal", init_std=0.3)
LAYOUTS = [
    {},
    {"num_kv_heads": 4},
    {"qk_norm": False},
    {"tie_embeddings": False},
    {"head_width": 6},  # narrower than a vector
    {"d_model": 36, "num_heads": 9, "num_kv_heads": 1, "head_width": 20, "d_ff": 50},  # nothing a multiple of one
]


def build(**changes):
    return build_model(CONFIG.model_copy(update=changes), vocab_size=50, context_length=120, seed=3).eval()


def random_rows(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_logits_are_those_of_the_whole_forward_pass(layout):
    model, rows = build(**layout), random_rows(TOKENS_AT_ONCE + 7, 1, 9)
    sequences = PackedSequences(pack(model), 3, 100)
    found = [sequences.extend(np.arange(3), rows).clone()]
    for step in range(20):
        new = [[step], [2 * step], [49 - step]]
        found.append(sequences.extend(np.arange(3), new).clone())
        rows = [[*row, *token] for row, token in zip(rows, new, strict=True)]
    for row, tokens in enumerate(rows):
        with torch.no_grad():
            expected = model(torch.tensor([tokens]))[0, -21:]
        torch.testing.assert_close(torch.stack([logits[row] for logits in found]), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_token_has_the_same_logits_in_any_company(layout):
    """To the bit: alone, among others, in a slot of its own choosing, and however the prompt is cut."""
    packed, (text, *others) = pack(build(**layout)), random_rows(75, 1, 8, 20, 64, 65, 3, 2, 13)
    alone = PackedSequences(packed, 1, 80).extend(np.array([0]), [text])[0].clone()
    together = PackedSequences(packed, 9, 80).extend(np.arange(9)[::-1].copy(), [*others, text])[-1].clone()
    pieces = PackedSequences(packed, 2, 80)
    for begin, end in ((0, 1), (1, 3), (3, 40), (40, 75)):
        in_pieces = pieces.extend(np.array([1]), [text[begin:end]])[0].clone()
    assert torch.equal(alone, together)
    assert torch.equal(alone, in_pieces)


def test_two_threads_compute_what_one_does():
    packed, rows = pack(build()), random_rows(*range(1, 21))
    one = PackedSequences(packed, 20, 40).extend(np.arange(20), rows).clone()
    torch.set_num_threads(2)
    try:
        sequences = PackedSequences(packed, 20, 40)
        assert torch.equal(sequences.extend(np.arange(20), rows), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 9, "repetition_penalty": 1.3}])
def test_what_cannot_be_packed_is_generated_all_the_same(monkeypatch, sampling):
    """The decoder's own cache, as on a GPU, with rows that end one by one and leave it."""
    model, prompts = build(), random_rows(5, 1, 2, 110, 7, 30)
    options = {"max_new_tokens": 30, "stop_ids": [3, 4, 5, 6], **sampling}
    packed = generate(model, prompts, **options)
    monkeypatch.setattr(continuation, "pack", lambda model: None)
    assert generate(model, prompts, **options) == packed
    assert len({len(row) for row in packed}) > 3


def test_only_what_the_step_computes_is_packed():
    assert pack(build(activation="gelu")) is None
    assert pack(build(kind="vanilla", activation="gelu", num_kv_heads=4)) is None
    assert pack(build().double()) is None
    model = build()
    model.compute_dtype = torch.bfloat16
    assert pack(model) is None
    assert [len(row) for row in generate(model, [[1], [2, 3]], max_new_tokens=4)] == [4, 4]
    assert [len(row) for row in generate(build(activation="gelu"), [[1], [2, 3]], max_new_tokens=4)] == [4, 4]


def test_a_packed_model_does_not_follow_later_changes():
    model = build()
    packed = pack(model)
    before = generate(packed, [[1]], max_new_tokens=8)
    with torch.no_grad():
        model.embed_tokens.weight.neg_()
    assert generate(packed, [[1]], max_new_tokens=8) == before
    assert generate(model, [[1]], max_new_tokens=8) != before


def test_a_sequence_beyond_its_room_is_refused_before_anything_is_written():
    sequences = PackedSequences(pack(build()), 2, 8)
    sequences.extend(np.arange(2), [[1] * 8, [2] * 5])
    keys, values = sequences.keys.copy(), sequences.values.copy()
    with pytest.raises(IndexError, match="more than 8"):
        sequences.extend(np.arange(2), [[1], [2]])
    assert np.array_equal(keys, sequences.keys)
    assert np.array_equal(values, sequences.values)
