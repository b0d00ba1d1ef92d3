"""The export to GGUF, judged by llama.cpp itself: the same tokens for any text, the same probabilities."""

import json
import urllib.request

import pytest
import torch

from lm_core.errors import UserError
from lm_core.model.export_gguf import export_gguf
from lm_core.tokenizer import HOSTILE_STRINGS, load_tokenizer, new_encoder
from lm_core.training.config import TokenizerConfig
from tests.model.test_export import checkpoint

pytest.importorskip("gguf", reason="the extra `export` is not installed")
CONTEXT = 64


class LlamaCpp:
    """llama.cpp's server in this process, on a free port of the loopback interface; keys and values in fp32."""

    def __init__(self, path):
        runtime = pytest.importorskip("xllamacpp", reason="no runtime of llama.cpp is installed")
        settings = runtime.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.warmup, settings.n_gpu_layers = CONTEXT, 1, False, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = runtime.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = runtime.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = runtime.Server(settings)

    def __call__(self, endpoint, **body):
        request = urllib.request.Request(
            f"{self._server.listening_address}/{endpoint}",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@pytest.mark.parametrize(
    "layout",
    [{}, {"qk_norm": False}, {"tie_embeddings": False}, {"head_width": 32}, {"qk_norm": False, "num_kv_heads": 4}],
)
def test_llama_cpp_gives_the_same_probabilities(tmp_path, layout):
    model = checkpoint(tmp_path, **layout)
    export_gguf(tmp_path, tmp_path / "export")
    llama = LlamaCpp(tmp_path / "export" / "model.gguf")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    for length in (1, 7, CONTEXT - 1):
        ids = torch.randint(5, model.vocab_size, (length,)).tolist()
        # A visible letter is forced, for the server says nothing of bytes that end no character; probabilities are
        # those before it.
        found = llama(
            "completion", prompt=ids, n_predict=1, n_probs=model.vocab_size, temperature=0, cache_prompt=False,
            logit_bias=[[tokenizer.encode("a")[0], 1e4]],
        )["completion_probabilities"][0]["top_logprobs"]  # fmt: skip
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        logprobs = torch.tensor([entry["logprob"] for entry in sorted(found, key=lambda entry: entry["id"])])
        torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("digits", [True, False])
def test_llama_cpp_cuts_any_text_into_the_same_tokens(tmp_path, digits):
    checkpoint(tmp_path)
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=400, split_digits=digits))
    encoder.train_from_iterator(["some text to learn from, naïve 漢字 12 345 6789"] * 9, trainer)
    model = checkpoint(tmp_path, encoder=encoder)
    export_gguf(tmp_path, tmp_path / "export")
    llama = LlamaCpp(tmp_path / "export" / "model.gguf")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == model.vocab_size
    for text in (*HOSTILE_STRINGS, *(a + b for a in HOSTILE_STRINGS for b in HOSTILE_STRINGS)):
        if text:  # of nothing the server makes an error
            found = llama("tokenize", content=text, parse_special=False)["tokens"]
            assert found == tokenizer.encode(text), ascii(text)
    turns = [("user", "some text"), ("assistant", "to learn"), ("user", "from")]
    messages = [{"role": role, "content": text} for role, text in turns]
    prompt = llama("apply-template", messages=messages)["prompt"]
    found = llama("tokenize", content=prompt, parse_special=True, add_special=True)["tokens"]
    assert found == tokenizer.conversation_ids(turns)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"algorithm": "unigram"}, "Unigram"),
        ({"algorithm": "wordpiece"}, "WordPiece"),
        ({"normalisation": "nfc"}, "normalise"),
        ({"split_cjk": True}, "split_cjk"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(tmp_path, tokenizer, message):
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=400, **tokenizer))
    encoder.train_from_iterator(["some text to learn from"] * 9, trainer)
    checkpoint(tmp_path, encoder=encoder)
    with pytest.raises(UserError, match=message) as error:
        export_gguf(tmp_path, tmp_path / "export")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("layout", "message"),
    [({"kind": "vanilla", "activation": "gelu", "num_kv_heads": 4}, "vanilla"), ({"activation": "gelu"}, "gelu")],
)
def test_a_model_that_llama_cpp_does_not_know_is_refused(tmp_path, layout, message):
    checkpoint(tmp_path, **layout)
    with pytest.raises(UserError, match=message):
        export_gguf(tmp_path, tmp_path / "export")
