"""Scoring by likelihood computes as training did."""

import json
from dataclasses import replace

import pytest
import torch

from lm_core.evaluation.likelihood import as_trained, document_rows, nats_by_row
from lm_core.model.weights import load_model


@pytest.mark.parametrize(("said", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), (None, torch.float32)])
def test_the_precision_is_that_of_training(world, tmp_path, said, dtype):
    if said:
        (tmp_path / "training.json").write_text(json.dumps({"config": {"optimization": {"precision": said}}}))
    model = load_model(world.base.folder)
    rows = document_rows(list(range(20, 60)), 0, model.context_length)
    whole = nats_by_row(model, rows, 1)
    with as_trained(model, replace(world.base, folder=tmp_path)):
        assert model.compute_dtype == dtype
        made = nats_by_row(model, rows, 1)
    assert model.compute_dtype == torch.float32
    assert made == pytest.approx(whole, rel=0.02)
    assert (made == whole).all() == (dtype == torch.float32)
