"""Which of two answers is the better one, by stated rules: pairs to learn from, and checks of what is written.

A pair sets the answer that a person gave against a copy of it that breaks one rule. A written answer is checked by
the same rules. Nobody's taste is in them, so anyone can count who wins.

    repeats        says a run of three words twice
    echo           is the user's last turn
    cut_off        ends without a final mark
    made_up        names a number, a time or a name that the conversation does not hold
    empty          says nothing
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_core.evaluation.metrics import words

_FINAL = re.compile(r"[.!?。！？…)\]\"'”’]\s*$")
_VALUES = re.compile(r"\d+(?:[.:,/-]\d+)*|(?<=[a-z,;] )[A-Z]\w+(?: [A-Z]\w+)*")
_SPEAKER = re.compile(r"^(?:User|Agent): ")
RUN = 3


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer, and the rule that the worse one breaks."""

    item_id: str
    prompt: str
    better: str
    worse: str
    rule: str


def last_turn(prompt: str) -> str:
    """What the user said last."""
    return _SPEAKER.sub("", prompt.rsplit("\n", 1)[-1]).strip()


def _repeats(prompt: str, answer: str) -> bool:
    text = words(answer)
    runs = [tuple(text[i : i + RUN]) for i in range(len(text) - RUN + 1)]
    return len(set(runs)) < len(runs)


def _echo(prompt: str, answer: str) -> bool:
    return words(answer) == words(last_turn(prompt))


def _cut_off(prompt: str, answer: str) -> bool:
    return not _FINAL.search(answer)


def _made_up(prompt: str, answer: str) -> bool:
    return any(value not in prompt for value in _VALUES.findall(answer))


def _empty(prompt: str, answer: str) -> bool:
    return not words(answer)


RULES: Mapping[str, Callable[[str, str], bool]] = {
    "repeats": _repeats,
    "echo": _echo,
    "cut_off": _cut_off,
    "made_up": _made_up,
    "empty": _empty,
}


def broken_rules(prompt: str, answer: str) -> list[str]:
    """The rules that an answer breaks. An empty one breaks only that: it has nothing to be wrong in."""
    return (
        ["empty", "cut_off"]
        if _empty(prompt, answer)
        else [name for name, breaks in RULES.items() if breaks(prompt, answer)]
    )


def pair_of(item: Mapping[str, Any]) -> Pair | None:
    """The item's answer against a copy that breaks one more rule; the rule is drawn by the item's identifier.

    None where the answer itself breaks a rule, or no copy can be made worse.
    """
    prompt, better = item["prompt"], item["target"]
    if broken_rules(prompt, better):
        return None
    makers: Sequence[tuple[str, Callable[[str, str], str]]] = (
        ("repeats", _said_twice),
        ("echo", lambda prompt, answer: last_turn(prompt)),
        ("cut_off", _cut_in_the_middle),
        ("made_up", _with_a_number),
    )
    start = int(hashlib.sha256(item["item_id"].encode()).hexdigest()[:8], 16)
    for turn in range(len(makers)):
        rule, make = makers[(start + turn) % len(makers)]
        worse = make(prompt, better)
        if worse != better and rule in broken_rules(prompt, worse):
            return Pair(item["item_id"], prompt, better, worse, rule)
    return None


def _said_twice(prompt: str, answer: str) -> str:
    body = answer.rstrip()
    return f"{body} {body}"


def _cut_in_the_middle(prompt: str, answer: str) -> str:
    parts = answer.split()
    return " ".join(parts[: max(1, len(parts) * 2 // 3)]).rstrip(".!?,;")


def _with_a_number(prompt: str, answer: str) -> str:
    """A number in the place of one word in the middle."""
    parts = answer.split()
    parts[len(parts) // 2] = "4711"
    return " ".join(parts)


def pairs_of(items: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Pairs of all items that allow one."""
    return [pair for item in items if (pair := pair_of(item))]
