"""The values in a text: numbers and times, and names; and whether a reply keeps to what its conversation has said.

A Latin name is told by its capital. Chinese has none, so its names are learnt from the training replies: a name is the
longest string that a reply shares with a turn of the user in the same dialogue, without what many dialogues say
anyway. So a few of them are no names, and one that the user never takes up is not known.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUMBER = r"\d+(?:[.:,/-]\d+)*"
_NAME = r"(?<=[a-z,;] )[A-Z]\w+(?: [A-Z]\w+)*|[A-Z]{2,}\w*"
_HAN = re.compile(r"[㐀-䶿一-鿿]+")
_SPEAKER = re.compile(r"^(User|Agent): ")
# A name has so many characters at least and at most, two of them in no phrase that so many dialogues use.
SHORTEST, LONGEST, OWN_CHARACTERS = 3, 16, 2
COMMON_SHARE = 0.1

Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Value:
    """A value in a text and the words right before and after it; empty where another value or nothing stands there."""

    text: str
    is_number: bool
    before: str
    after: str


class ValueFinder:
    """Finds values in texts.

    Args:
        names: those that no capital tells.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        known = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
        self._values = re.compile("|".join(part for part in (known, NUMBER, _NAME) if part))

    def find(self, text: str) -> list[str]:
        """The values, in order."""
        return self._values.findall(text)

    def in_place(self, text: str) -> Iterator[Value]:
        """The values with the words beside them; of Chinese the two characters before and the one after."""
        end, found = 0, list(self._values.finditer(text))
        for number, match in enumerate(found):
            after = text[match.end() : found[number + 1].start() if number + 1 < len(found) else None]
            before = text[end : match.start()]
            yield Value(match[0], match[0][0].isdigit(), _last_word(before), _first_word(after))
            end = match.end()


def _last_word(text: str) -> str:
    found = re.search(r"([㐀-䶿一-鿿]{1,2}|[^\W\d㐀-䶿一-鿿]+)\W*$", text)
    return found[1].lower() if found else ""


def _first_word(text: str) -> str:
    found = re.match(r"\W*([㐀-䶿一-鿿]|[^\W\d㐀-䶿一-鿿]+)", text)
    return found[1].lower() if found else ""


def turns_of(prompt: str) -> list[tuple[str, str]]:
    """The turns of a conversation as (speaker, text); a first line that was cut has no speaker."""
    turns: list[tuple[str, str]] = []
    for line in prompt.split("\n"):
        match = _SPEAKER.match(line)
        if match or not turns:
            turns.append((match[1] if match else "", line[match.end() :] if match else line))
        else:
            turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{line}")
    return turns


def kept_and_contradicted(finder: ValueFinder, prompt: str, reply: str) -> tuple[int, int]:
    """Of a reply's values, how many keep to the turns before it, and how many contradict them.

    The turns are asked from the last one back, and the first that has to do with the value decides: it is kept where
    the turn holds it; it is contradicted where the turn is the agent's own and holds another number between the same
    two words ("costs _ dollars"). A user's number binds nobody to it: it may be a bound, or a wish. Where the reply
    names what nobody has named, its numbers are about that, and contradict nothing. What no turn has to do with is
    news, and is neither: whether it is made up is what faithfulness asks.
    """
    turns = [(speaker, list(finder.in_place(text))) for speaker, text in turns_of(prompt)]
    said = {value.text for _, turn in turns for value in turn}
    values = list(finder.in_place(reply))
    of_something_new = any(not value.is_number and value.text not in said for value in values)
    kept = contradicted = 0
    for value in values:
        for speaker, turn in reversed(turns):
            if value.text in {other.text for other in turn}:
                kept += 1
                break
            if speaker == "Agent" and not of_something_new and any(_stands_in_place(value, other) for other in turn):
                contradicted += 1
                break
    return kept, contradicted


def _stands_in_place(value: Value, other: Value) -> bool:
    same = (value.before, value.after) == (other.before, other.after)
    return value.is_number and other.is_number and same and bool(value.before and value.after)


def learn_names(items: Items) -> frozenset[str]:
    """Chinese names in training replies; items of one `group` are of one dialogue."""
    dialogues: defaultdict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for number, item in enumerate(items):
        replies, asked = dialogues[item.get("group") or str(number)]
        replies.add(item["target"])
        for speaker, text in turns_of(item["prompt"]):
            (replies if speaker == "Agent" else asked).add(text)
    strings = [(_strings(replies), _strings(asked)) for replies, asked in dialogues.values()]
    num_dialogues = Counter(string for replies, asked in strings for string in replies | asked)
    common = {string for string, count in num_dialogues.items() if count > max(1, COMMON_SHARE * len(strings))}
    shared = {string for replies, asked in strings for string in _longest(replies & asked)}
    names = {_trimmed(string, common) for string in shared}
    return frozenset(name for name in names if _own_characters(name, common) >= OWN_CHARACTERS)


def _strings(texts: Iterable[str]) -> set[str]:
    """All runs of Chinese characters within texts of two characters at least."""
    runs = [run for text in texts for run in _HAN.findall(text)]
    return {
        run[start:end]
        for run in runs
        for start in range(len(run))
        for end in range(start + 2, min(len(run), start + LONGEST) + 1)
    }


def _longest(strings: set[str]) -> set[str]:
    """Those that are no part of another."""
    kept: set[str] = set()
    for string in sorted(strings, key=lambda string: (-len(string), string)):
        if len(string) >= SHORTEST and not any(string in other for other in kept):
            kept.add(string)
    return kept


def _trimmed(string: str, common: set[str]) -> str:
    """A string without the common phrases that it begins or ends with."""
    for length in range(len(string) - 1, SHORTEST - 1, -1):
        if string[-length:] in common:
            return _trimmed(string[:-length], common)
        if string[:length] in common:
            return _trimmed(string[length:], common)
    return string


def _own_characters(name: str, common: set[str]) -> int:
    """Characters of a name that no common phrase within it covers."""
    covered = {
        place
        for start in range(len(name))
        for end in range(start + 2, len(name) + 1)
        if name[start:end] in common
        for place in range(start, end)
    }
    return len(name) - len(covered)
