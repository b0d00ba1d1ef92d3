"""The preset gpu: what it is, and its code path at a size that a CPU can take."""

import pytest

from flows.presets import gpu
from lm_core.training.forecast import Workload
from lm_core.training.pretrain import pretrain
from tests.training.corpus_files import new_build

PRESET = gpu().pretrain


def test_it_is_of_the_class_of_gpt_2_small():
    work = Workload(PRESET.model, gpu().train_tokenizer.vocab_size, gpu().tokenize.context_length, PRESET.train_tokens)
    assert 100e6 < work.num_parameters < 140e6
    settings = PRESET.optimization
    assert (settings.precision, settings.compile) == ("bf16", True)
    assert settings.batch_tokens % settings.micro_batch_tokens == 0
    assert settings.micro_batch_tokens % gpu().tokenize.context_length == 0
    assert PRESET.train_tokens >= 10 * work.num_parameters


@pytest.mark.exhaustive
def test_its_code_path_learns_on_a_cpu(tokens, tokenizer, tmp_path):
    small = {"num_layers": 1, "d_model": 32, "num_heads": 2, "num_kv_heads": 2, "d_ff": 64}
    sizes = {"batch_tokens": 512, "micro_batch_tokens": 256}
    config = PRESET.model_copy(
        update={
            "model": PRESET.model.model_copy(update=small),
            "optimization": PRESET.optimization.model_copy(update=sizes),
            "train_tokens": 512 * 30,
            "validation_tokens": 640,
            "num_evaluations": 2,
        }
    )
    statistics = pretrain(new_build(tmp_path, "a"), config, tokens=tokens, tokenizer=tokenizer)
    assert statistics["num_steps"] == 30
    assert statistics["val_loss"] < 5.9  # log(400) = 5.99 is where an untrained model stands
