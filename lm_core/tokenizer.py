"""The tokenizer: training it, and the one way to load it.

Text is never control. `tokenizers` turns the words `<|endoftext|>` in a document into the control id, and the switch
that stops it is lost whenever a tokenizer is saved and loaded. So nobody opens a tokenizer.json but `load_tokenizer`,
and control ids enter a sequence only from the attributes of `TextTokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from tokenizers import decoders, models, trainers  # isort: skip

from lm_core.artifact import ValidCorpus
from lm_core.corpus.ledger import kept_documents
from lm_core.errors import UserError
from lm_core.runtime import Runtime
from lm_core.store import Build
from lm_core.training.config import TokenizerConfig

END_OF_TEXT, PAD, USER, ASSISTANT, TURN_END = CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|turn_end|>",
)
UNKNOWN = "<|unknown|>"
QUALITY = "record_quality.json"  # kept and verified, but no part of what the tokenizer is
MAX_FILE_BYTES = 64 << 20
MAX_VOCAB_SIZE = 1 << 20
REPORTED_DOCUMENTS = 4096
# WordPiece looks for the longest entry anew at each byte of a word, and makes <|unknown|> of words beyond its limit:
# its words are cut there, at the limit that every reader of such files has by default.
LONGEST_WORDPIECE = 100
NORMALIZERS = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}
# To the letter the patterns of Qwen (single digits) and Llama 3 (up to three): other programs know them by name, and
# fast encoders have them compiled.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SINGLE_DIGITS, DIGITS_IN_THREES = _WORDS.replace("{DIGITS}", r"\p{N}"), _WORDS.replace("{DIGITS}", r"\p{N}{1,3}")
# Texts that have broken tokenizers: each must come back unchanged, and none may become a control token.
HOSTILE_STRINGS = (
    *CONTROL_TOKENS,
    UNKNOWN,
    "a<|pad|>b <|turn_end|>\n<|im_start|>system<think></s>[INST]",
    "",
    "\x00\x01\x7f\x85",
    "\ufeffx\u200b\u2028\u2029",
    "\u202e\u2066é漢字🙂\u2069",
    "Ripgrep，一款递归的行导向搜索工具。",
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "a\u0301e\u0301 ﬁ Å ſ 'ſ İ",
    "1234567 １２３ ٣٤ ⅷ½ ²",
    " \n\t  x  \r\n\r\r\n\n \u3000\xa0y  ",
    "it's IT'S I'LL 'tis",
    "\U0010ffff\ufffe\ufffd\ue000",
    "x" * 300,
    "x" * 10_001,
    "é" * 6000,
    " " * 300 + "z",
)


class TextTokenizer:
    """Encodes text to ids and back.

    A document is `[end_of_text] + encode(text)`: the mark stands before each text, so that it both opens a text and,
    as the next document's opening, ends the one before.
    """

    def __init__(self, encoder: Encoder, definition: str) -> None:
        self._encoder, self.definition = encoder, definition
        self.vocab_size: int = encoder.get_vocab_size(with_added_tokens=True)
        ids: dict[str, int] = encoder.get_vocab(with_added_tokens=True)
        self.end_of_text, self.pad, self.user, self.assistant, self.turn_end = (ids[t] for t in CONTROL_TOKENS)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control words in it are ordinary text.

        Raises:
            UserError: when the text holds half of a surrogate pair.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all threads of `tokenizers`."""
        try:
            return [encoding.ids for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            bad = next((i for i, text in enumerate(texts) if not _is_unicode(text)), 0)
            raise UserError(f"text {bad} is not valid Unicode (a lone surrogate); repair or drop it") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control ids are left out, bytes that form no character become U+FFFD."""
        return str(self._encoder.decode(list(ids), skip_special_tokens=True))

    def prompt_ids(self, prompt: str) -> list[int]:
        """A turn of the user and the opening of the answer; the answer ends with `turn_end`."""
        return self.conversation_ids([("user", prompt)])

    def conversation_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Turns, given as (role, text), and the opening of the next answer; the chat template of exports says the same.

        Args:
            messages: the role "assistant" is the model's own, every other the user's.
        """
        ids = [self.end_of_text]
        for (role, _), text in zip(messages, self.encode_batch([text for _, text in messages]), strict=True):
            ids += [self.assistant if role == "assistant" else self.user, *text, self.turn_end]
        return [*ids, self.assistant]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32 (V,); 0 for control tokens."""
        num_bytes = np.zeros(self.vocab_size, np.int32)
        for token, i in self._encoder.get_vocab(with_added_tokens=False).items():
            num_bytes[i] = 0 if token == UNKNOWN else len(token)  # each character of the byte alphabet is one byte
        for i, added in self._encoder.get_added_tokens_decoder().items():
            num_bytes[i] = 0 if added.special else len(added.content.encode())
        return num_bytes


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(path: Path) -> TextTokenizer:
    """Open a tokenizer.json. The only place that does.

    Raises:
        UserError: naming the file, when it is missing, too large, malformed, or lacks the control tokens.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; that is no tokenizer of ours")
        text = path.read_text(encoding="utf-8")
        _check_vocabulary(path, json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer.json ({error})") from None
    try:
        encoder = Encoder.from_str(text)
    except BaseException as error:  # tokenizers panics on hostile files, and a panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{path} is not a valid tokenizer.json ({_in_one_line(error)})") from None
    encoder.encode_special_tokens = True
    encoder.no_padding()
    encoder.no_truncation()
    tokenizer = TextTokenizer(encoder, text)
    _check_that_text_is_text(path, tokenizer)
    return tokenizer


def num_entries(path: Path) -> int:
    """Entries of a tokenizer.json, control tokens included.

    Raises:
        UserError: naming the file, when it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        tokens = vocabulary if isinstance(vocabulary, dict) else [token for token, _ in vocabulary]
        return len({*tokens, *(entry["content"] for entry in content["added_tokens"])})
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer.json ({_in_one_line(error)})") from None


def _in_one_line(error: BaseException) -> str:
    return (ascii(str(error))[1:-1] or type(error).__name__)[:200]


def _check_that_text_is_text(path: Path, tokenizer: TextTokenizer) -> None:
    """Refuse a vocabulary whose merges or pieces make control of control words, or that panics at them."""
    control = {tokenizer.end_of_text, tokenizer.pad, tokenizer.user, tokenizer.assistant, tokenizer.turn_end}
    texts = [text for token in CONTROL_TOKENS for text in (token, f"a {token}b", f"\n{token}\n")]
    try:
        encoded = tokenizer.encode_batch(texts)
        for ids in encoded:
            tokenizer.decode(ids)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{path} is not a valid tokenizer.json ({_in_one_line(error)})") from None
    for text, ids in zip(texts, encoded, strict=True):
        if control & set(ids):
            raise UserError(
                f"{path} turns the text {text.strip()!r} into a control token; such a vocabulary is refused"
            )


def _check_vocabulary(path: Path, content: Any) -> None:
    """Refuse ids with gaps, shared or beyond bounds, before anything allocates by them."""
    try:
        vocabulary = content["model"]["vocab"]
        tokens = dict(vocabulary) if isinstance(vocabulary, dict) else {t: i for i, (t, _) in enumerate(vocabulary)}
        added = {entry["content"]: (entry["id"], entry["special"]) for entry in content["added_tokens"]}
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path} is not a tokenizer.json: it needs model.vocab and added_tokens") from None
    if content["model"].get("dropout"):
        raise UserError(
            f"{path}: model.dropout={content['model']['dropout']} draws other ids each time; set it to null"
        )
    missing = [token for token in CONTROL_TOKENS if added.get(token, (0, False))[1] is not True]
    if missing:
        raise UserError(f"{path} lacks the control token {missing[0]}; train the tokenizer with `millrace`")
    whole = tokens | {token: i for token, (i, _) in added.items()}
    ids = set(whole.values())
    if len(ids) > MAX_VOCAB_SIZE or not all(type(i) is int for i in ids) or ids != set(range(len(whole))):
        raise UserError(f"{path}: the ids of the vocabulary are not 0..{len(whole) - 1}, one each")
    moved = next((token for token, (i, _) in added.items() if tokens.get(token, i) != i), None)
    if moved is not None:
        raise UserError(f"{path}: the added token {moved!a} has two ids")


# -------------------------------------------------------------------------------------------------------- training


def new_encoder(config: TokenizerConfig) -> tuple[Encoder, Any]:
    """An untrained encoder and its trainer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "special_tokens": [*CONTROL_TOKENS],
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    if config.algorithm == "bpe":
        encoder = Encoder(models.BPE())
        trainer: Any = trainers.BpeTrainer(**options)
    elif config.algorithm == "unigram":
        encoder, trainer = Encoder(models.Unigram()), trainers.UnigramTrainer(**options)
    else:
        options["special_tokens"].append(UNKNOWN)
        encoder = Encoder(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORDPIECE))
        trainer = trainers.WordPieceTrainer(continuing_subword_prefix="", **options)
    splits: list[Any] = [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")] if config.split_cjk else []
    words = SINGLE_DIGITS if config.split_digits else DIGITS_IN_THREES
    splits += [
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if config.algorithm == "wordpiece":  # after ByteLevel: what is counted are bytes
        splits.append(pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORDPIECE}}}"), "isolated"))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(splits)
    encoder.decoder = decoders.ByteLevel()
    if config.normalisation != "none":
        encoder.normalizer = NORMALIZERS[config.normalisation]()
    return encoder, trainer


def train_tokenizer(build: Build, config: TokenizerConfig, *, corpus: ValidCorpus) -> dict[str, Any]:
    """Learn a vocabulary from the kept training documents; write tokenizer.json and its quality report.

    Raises:
        UserError: when there is no text to learn from.
    """
    encoder, trainer = new_encoder(config)
    sample = list(_sample(corpus, config.max_train_bytes, build.runtime))
    if not sample:
        raise UserError("no training document was kept, so there is nothing to learn a tokenizer from")
    num_bytes = sum(len(text.encode()) for _, text in sample)
    build.progress(0, num_bytes, "bytes")
    encoder.train_from_iterator((text for _, text in sample), trainer, length=len(sample))
    path = build.folder / "tokenizer.json"
    path.write_text(encoder.to_str(pretty=False), encoding="utf-8")
    build.progress(num_bytes, num_bytes, "bytes")
    from lm_core.tokenizer_quality import quality_report

    quality = quality_report(load_tokenizer(path), sample[:REPORTED_DOCUMENTS])
    (build.folder / QUALITY).write_text(json.dumps(quality, indent=1, ensure_ascii=False), encoding="utf-8")
    return {"documents": len(sample), "bytes": num_bytes} | quality


def _sample(corpus: ValidCorpus, max_bytes: int, runtime: Runtime) -> Iterator[tuple[str, str]]:
    """(source, text) of training documents in the ledger's order until the budget is spent; the last one is cut.

    The ledger orders by doc_id, a hash: its beginning is an even sample of all sources.
    """
    left = max_bytes
    for batch in kept_documents(corpus, splits=("train",), columns=("source", "text"), runtime=runtime):
        for source, text in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True):
            content = text.encode()
            yield source, text if len(content) <= left else content[:left].decode("utf-8", "ignore")
            left -= len(content)
            if left <= 0:
                return
