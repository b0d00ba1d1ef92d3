"""The forecast knows the architecture without building it, and states what it assumes."""

import pytest

from lm_core.model.build import empty_model
from lm_core.runtime import Runtime, Tariff
from lm_core.training.config import ModelConfig, OptimizationConfig
from lm_core.training.forecast import Workload, activation_bytes, costs_of, forecast, optimizer_bytes, planned
from lm_core.training.optimizer import OptimizerSet
from lm_core.training.throughput import flops_per_token

MODELS = [
    ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48),
    ModelConfig(num_layers=3, d_model=32, num_heads=2, num_kv_heads=2, d_ff=64, tie_embeddings=False, qk_norm=False),
    ModelConfig(num_layers=1, d_model=32, num_heads=2, num_kv_heads=1, head_width=64, d_ff=64),
    ModelConfig(kind="vanilla", num_layers=2, d_model=32, num_heads=4, num_kv_heads=4, d_ff=64, activation="gelu"),
]


@pytest.mark.parametrize("config", MODELS)
def test_counts_are_those_of_the_built_model(config):
    model = empty_model(config, vocab_size=100, context_length=16)
    work = Workload(config, 100, 16, 1000)
    assert work.num_parameters == model.num_parameters()
    assert work.flops_per_token == flops_per_token(model, 16)


def test_wider_heads_take_more_work_and_more_memory():
    narrow = ModelConfig(num_layers=1, d_model=32, num_heads=4, num_kv_heads=4, head_width=8, d_ff=64)
    wide = narrow.model_copy(update={"head_width": 32})
    one, four = (Workload(config, 100, 64, 1) for config in (narrow, wide))
    in_weights = 6 * (four.matrix_weights - one.matrix_weights)
    # scores and sums over T / 2 keys on average: 4 operations each forward, twice as many backward
    in_attention = 3 * 4 * (64 / 2) * 4 * (32 - 8)
    assert four.flops_per_token - one.flops_per_token == in_weights + in_attention
    bf16 = OptimizationConfig(precision="bf16", micro_batch_tokens=64)
    # queries, keys and values, each before and after rotation, their weighted sum, and what heads share of the rest
    assert activation_bytes(four, bf16) - activation_bytes(one, bf16) == 64 * 2 * 7 * 4 * (32 - 8)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "muon", "torch_muon"])
def test_optimizer_bytes_are_those_that_a_step_leaves(optimizer):
    config = OptimizationConfig(optimizer=optimizer)
    model = empty_model(MODELS[0], vocab_size=100, context_length=16)
    optimizers = OptimizerSet(model, config)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizers.step(1.0, 0)
    moments = sum(4 * tensor.numel() for name, tensor in optimizers.state().items() if not name.endswith("|step"))
    assert optimizer_bytes(Workload(MODELS[0], 100, 16, 1), config) == moments


def test_prices_are_the_tariff_or_what_is_stated():
    owned = costs_of(Tariff(watts=100, price_per_kwh=0.5, price_per_hour=None), gpu=None, num_devices=2, num_threads=1)
    assert owned.energy_kwh(3600) == pytest.approx(0.2)
    assert owned.usd(3600) == pytest.approx(0.1)
    assert "100 W" in owned.assumptions
    rented = costs_of(Tariff(None, None, None), gpu="NVIDIA H100 80GB HBM3", num_devices=8, num_threads=1)
    assert rented.usd(3600) == pytest.approx(24)
    assert "3 USD per hour" in rented.assumptions


def test_more_work_takes_more():
    settings = OptimizationConfig()
    costs = costs_of(Tariff(), gpu=None, num_devices=1, num_threads=2)
    one, two = (
        forecast(Workload(MODELS[0], 100, 16, tokens), settings, costs, peak_flops=1e9, gpu=False)
        for tokens in (1000, 2000)
    )
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert two.memory_bytes == one.memory_bytes
    averaged = OptimizationConfig(ema_decay=0.9)
    more = forecast(Workload(MODELS[0], 100, 16, 1000), averaged, costs, peak_flops=1e9, gpu=False)
    assert more.disk_bytes > one.disk_bytes


def test_a_rented_gpu_has_a_price_before_the_run():
    from flows.presets import gpu

    config = gpu().pretrain
    work = Workload(config.model, 32_768, 1024, config.train_tokens)
    said = planned(work, config.optimization, Runtime(tariff=Tariff(None, None, None)), on_gpu=True)
    assert 1 < said.cost_usd < 100
    assert said.cost_usd == pytest.approx(3.0 * said.seconds / 3600)
