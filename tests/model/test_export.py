"""The export is a stock architecture: `transformers` loads it and computes the same bits."""

import pytest
import torch

from lm_core.downstream.classifier import load_finetuned
from lm_core.errors import UserError
from lm_core.model.build import build_model
from lm_core.model.conversation import Speaker, text_pieces
from lm_core.model.export import export_huggingface, export_onnx
from lm_core.model.export_gguf import export_gguf
from lm_core.model.generate import generate
from lm_core.model.weights import load_model, save_model
from lm_core.tokenizer import CONTROL_TOKENS, UNKNOWN, load_tokenizer, new_encoder
from lm_core.training.config import ModelConfig, TokenizerConfig

CONFIG = ModelConfig(num_layers=2, d_model=96, num_heads=4, num_kv_heads=2, d_ff=80, init="normal", init_std=0.1)


def checkpoint(folder, encoder=None, **changes):
    if encoder is None:
        encoder, trainer = new_encoder(TokenizerConfig(vocab_size=400))
        encoder.train_from_iterator(["some text to learn from, naïve 漢字 <|pad|>"] * 9, trainer)
    encoder.save(str(folder / "tokenizer.json"))
    vocab_size = load_tokenizer(folder / "tokenizer.json").vocab_size
    model = build_model(CONFIG.model_copy(update=changes), vocab_size=vocab_size, context_length=64, seed=0)
    save_model(model, folder)
    return model.eval()


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"qk_norm": False}, {"num_kv_heads": 4}, {"head_width": 32}]
)
def test_transformers_gives_the_same_logits_to_the_bit(tmp_path, changes):
    transformers = pytest.importorskip("transformers", reason="the extra `export` is not installed")
    source = tmp_path / "checkpoint"
    source.mkdir()
    model = checkpoint(source, **changes)
    export_huggingface(source, tmp_path / "export")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager")
    assert type(stock).__name__ == ("LlamaForCausalLM" if changes.get("qk_norm") is False else "Qwen3ForCausalLM")
    tokens = torch.randint(5, model.vocab_size, (2, 40))
    with torch.no_grad():
        assert (stock.eval()(tokens).logits - model(tokens)).abs().max() == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "some naïve 漢字 <|endoftext|> text"
    own = load_tokenizer(source / "tokenizer.json")
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == [own.end_of_text, *own.encode(text)]


def test_transformers_chats_by_the_template_and_text_is_no_control(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `export` is not installed")
    source = tmp_path / "checkpoint"
    source.mkdir()
    checkpoint(source)
    export_huggingface(source, tmp_path / "export")
    own = load_tokenizer(source / "tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    turns = [("user", "some text"), ("assistant", "to learn"), ("user", "from")]
    messages = [{"role": role, "content": text} for role, text in turns]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert found == own.conversation_ids(turns)
    hostile = [{"role": "user", "content": "".join(CONTROL_TOKENS) + UNKNOWN}]
    ids = tokenizer.apply_chat_template(hostile, add_generation_prompt=True)["input_ids"]
    assert [i for i in ids if i < len(CONTROL_TOKENS)] == own.prompt_ids("")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    made = stock.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist()
    speaker = Speaker(source)
    expected = "".join(speaker.converse(turns, max_new_tokens=6))
    assert own.decode(made) == expected


VANILLA = {"kind": "vanilla", "activation": "gelu", "num_kv_heads": 4}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, pytest.param(VANILLA, marks=pytest.mark.exhaustive)])
def test_onnx_runtime_gives_the_same_logits(tmp_path, changes):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    source = tmp_path / "checkpoint"
    source.mkdir()
    model = checkpoint(source, **changes)
    export_onnx(source, tmp_path / "export")
    session = runtime.InferenceSession(tmp_path / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 1), (2, 40), (3, 64)):  # other sizes than the one it was traced with, up to the whole context
        tokens = torch.randint(5, model.vocab_size, shape)
        with torch.no_grad():
            expected = model(tokens)
        (found,) = session.run(None, {"tokens": tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_vanilla_has_no_counterpart(tmp_path):
    source = tmp_path / "checkpoint"
    source.mkdir()
    checkpoint(source, kind="vanilla", activation="gelu", num_kv_heads=4)
    with pytest.raises(UserError, match="vanilla"):
        export_huggingface(source, tmp_path / "export")


@pytest.mark.parametrize("export", [export_huggingface, export_gguf, export_onnx])
def test_a_classifier_has_no_counterpart(tmp_path, export):
    checkpoint(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="classifier"):
        export(tmp_path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("vocab_size", [300, 2000])
@pytest.mark.parametrize(
    "use",
    [
        Speaker,
        load_model,
        load_finetuned,
        lambda folder: export_huggingface(folder, folder / "export"),
        lambda folder: export_onnx(folder, folder / "export"),
        lambda folder: export_gguf(folder, folder / "export"),
    ],
    ids=["speak", "load", "finetuned", "hf", "onnx", "gguf"],
)
def test_a_tokenizer_of_another_model_is_refused_in_one_line(tmp_path, use, vocab_size):
    """More entries than rows would be an index error, fewer a model that says what nobody can read."""
    encoder, trainer = new_encoder(TokenizerConfig(vocab_size=vocab_size))
    encoder.train_from_iterator([" ".join(f"word{i} {i * i}" for i in range(3000))], trainer)
    checkpoint(tmp_path)
    encoder.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json has \d+ entries, the model's embedding \d+ rows") as error:
        use(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "export").exists()


def test_speaker_completes_answers_and_scores(tmp_path):
    model = checkpoint(tmp_path)
    speaker = Speaker(tmp_path)
    assert isinstance("".join(speaker.complete("some", max_new_tokens=5)), str)
    assert "".join(speaker.answer("text?", max_new_tokens=5)) == "".join(speaker.answer("text?", max_new_tokens=5))
    scored = speaker.score("some text to learn from")
    ids = torch.tensor([scored["ids"]])
    oracle = model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert scored["logprobs"] == pytest.approx(oracle.tolist(), abs=1e-4)
    long = speaker.score("some text to learn from " * 30)
    assert len(long["logprobs"]) == len(long["ids"]) - 1 > 64


def test_a_conversation_forgets_its_oldest_turns_first(tmp_path):
    checkpoint(tmp_path)
    speaker = Speaker(tmp_path)
    last = [("user", "from text")]
    long = [("user", "some text " * 9), ("assistant", "to learn " * 9)] * 3 + last
    assert "".join(speaker.converse(long, max_new_tokens=8)) == "".join(speaker.converse(last, max_new_tokens=8))
    assert "".join(speaker.converse([("user", "text " * 500)], max_new_tokens=8)) is not None
    short = [("user", "some"), ("assistant", "text"), *last]
    whole = speaker.tokenizer.conversation_ids(short)
    assert whole.count(speaker.tokenizer.turn_end) == 3
    made = generate(speaker.model, [whole], max_new_tokens=8, stop_ids=[0, speaker.tokenizer.turn_end])[0]
    assert "".join(speaker.converse(short, max_new_tokens=8)) == speaker.tokenizer.decode(made)


def test_texts_are_completed_together_as_alone(tmp_path):
    checkpoint(tmp_path)
    speaker = Speaker(tmp_path)
    texts = ["some", "", "text to learn from", "text " * 300]
    together = speaker.complete_all(texts, max_new_tokens=6)
    assert together == ["".join(speaker.complete(text, max_new_tokens=6)) for text in texts]
    cut = next(text for text in together if len(text) > 1)
    stopped = speaker.complete_all(texts, max_new_tokens=6, stop=[cut[1]])
    assert stopped[together.index(cut)] == cut[:1].partition(cut[1])[0]


def test_pieces_wait_for_whole_characters(tmp_path):
    checkpoint(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    pieces = list(text_pieces(tokenizer, iter(tokenizer.encode("a 🙂 é"))))
    assert "".join(pieces) == "a 🙂 é"
    assert not any("\ufffd" in piece for piece in pieces)
