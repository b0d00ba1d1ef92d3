"""What is computed does not depend on where its arrays lie in memory: that would differ from process to process."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lm_core.model import kernels

COMPILE_ALL = """
import numpy as np, torch
from numba.core.dispatcher import Dispatcher
from lm_core.model import kernels, sampling, step_kernels
from lm_core.model.build import build_model
from lm_core.model.packed import PackedSequences, pack
from lm_core.training.config import ModelConfig

sizes = dict(num_layers=1, d_model=32, num_heads=2, num_kv_heads=1, d_ff=48, init="normal")
model = build_model(ModelConfig(**sizes), vocab_size=50, context_length=64, seed=1)
tokens = torch.zeros(2, 17, dtype=torch.int64)
for model.compute_dtype in (torch.float32, torch.bfloat16):
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
model.compute_dtype = torch.float32
PackedSequences(pack(model.eval()), 1, 20).extend(np.zeros(1, np.int64), [[1, 2, 3]])
every = sampling.Sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.5)
sampling.choose(torch.zeros(1, 50), every, torch.zeros(1), torch.zeros(1, 50, dtype=torch.bool))
found = {
    f"{module.__name__}.{name} {signature}": kernel.inspect_llvm(signature).count("vector.memcheck")
    for module in (kernels, step_kernels, sampling)
    for name, kernel in vars(module).items()
    if isinstance(kernel, Dispatcher)
    for signature in kernel.signatures
}
assert len(found) > 30, sorted(found)
print(*(f"{name}: {count}" for name, count in found.items() if count), sep="\\n")
"""


@pytest.mark.slow
def test_no_compiled_loop_chooses_by_the_addresses_of_its_arrays(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}  # what comes from the cache cannot be inspected
    done = subprocess.run([sys.executable, "-c", COMPILE_ALL], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_weights_of_attention_are_the_same_beside_any_array():
    scores = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    first = torch.empty((0, 0), dtype=torch.int64)
    memory = torch.empty(scores.numel() + 200)
    found = []
    for gap in (0, 1, 4, 16, 100):  # numbers between the last score and the kernel's room
        own, room = memory[: scores.numel()].view(128, 16), memory[scores.numel() + gap :][:32].view(2, 16)
        own.copy_(scores)
        kernels.over_rows(kernels.causal_softmax_forward, 128, own, 0.25, 16, first, room)
        found.append(own.numpy().tobytes())
    assert len(set(found)) == 1
    assert np.isfinite(np.frombuffer(found[0], np.float32)).all()
