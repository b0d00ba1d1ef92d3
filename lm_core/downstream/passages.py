"""Cutting texts: the part of a context that a question is about, turns of a dialogue, passages of a story."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lm_core.evaluation.metrics import words

_SENTENCES = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]+\s*|[^.!?。！？\n]+$")
SPEAKERS = {"user": "User", "system": "Agent"}
# How data sets name the two sides.
_SIDES = {"usr": "user", "customer": "user", "0": "user", "sys": "system", "assistant": "system", "agent": "system",
          "1": "system"}  # fmt: skip


def sentences(text: str) -> list[str]:
    """Sentences of a text, by their final marks; joined they are the text."""
    return _SENTENCES.findall(text)


def focus_on(text: str, question: str, max_chars: int) -> str:
    """The run of whole sentences of at most so many characters that shares most words with the question.

    Looks at the question alone, never at the answer. Words that occur once in the text count like any other.
    """
    parts = sentences(text)
    wanted = set(words(question))
    shared = [len(wanted & set(words(part))) for part in parts]
    best, best_score = "", -1
    for start in range(len(parts)):
        run, score = "", 0
        for part, overlap in zip(parts[start:], shared[start:], strict=True):
            if run and len(run) + len(part) > max_chars:
                break
            run, score = run + part, score + overlap
        if score > best_score:
            best, best_score = run, score
    return best[: max(0, max_chars)].strip()


def histories(row: dict[str, Any], max_chars: int) -> Iterator[dict[str, Any]]:
    """For each system turn the turns before it that fit (`history`), and the turn itself (`reply`)."""
    names = [str(who).casefold() for who in row["speakers"]]
    speakers = [_SIDES.get(name, name) for name in names]
    said = [f"{SPEAKERS.get(who, who)}: {turn}" for who, turn in zip(speakers, row["turns"], strict=True)]
    for place, speaker in enumerate(speakers):
        if speaker != "system" or place == 0:
            continue
        history = said[place - 1]
        for turn in reversed(said[: place - 1]):
            if len(history) + len(turn) + 1 > max_chars:
                break
            history = f"{turn}\n{history}"
        yield row | {"history": history[-max_chars:], "reply": row["turns"][place]}


def passages(text: str, max_chars: int) -> list[str]:
    """A text in pieces of at most so many characters, cut at sentences where there are any."""
    pieces: list[str] = []
    piece = ""
    for sentence in sentences(text):
        if piece and len(piece) + len(sentence) > max_chars:
            pieces.append(piece.strip())
            piece = ""
        piece += sentence
        while len(piece) > max_chars:
            pieces.append(piece[:max_chars].strip())
            piece = piece[max_chars:]
    return [part for part in [*pieces, piece.strip()] if part]
