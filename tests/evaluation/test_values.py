"""Values of replies: Chinese names are learnt, and a reply is held against what its conversation has said."""

import pytest

from lm_core.evaluation.guards import guard_figures
from lm_core.evaluation.outcome import Data, Outcome, Scheme
from lm_core.evaluation.values import ValueFinder, kept_and_contradicted, learn_names, turns_of

PRICE = "User: what of the mill?\nAgent: The mill costs 20 dollars a day."


@pytest.mark.parametrize(
    ("prompt", "reply", "counts"),
    [
        (PRICE, "Yes, it costs 20 dollars.", (1, 0)),
        (PRICE, "Yes, it costs 25 dollars.", (0, 1)),
        (PRICE, "It opens at 9.", (0, 0)),  # news
        (PRICE, "The house by the Weir costs 25 dollars.", (0, 0)),  # of something that nobody has named yet
        (PRICE + "\nUser: at the Weir?", "The house by the Weir costs 25 dollars.", (1, 1)),
        (PRICE + "\nUser: I would like one that costs 30 dollars.", "It costs 30 dollars.", (1, 0)),
        ("User: it costs 30 dollars at most.", "It costs 25 dollars.", (0, 0)),  # a wish binds nobody to it
        (PRICE + "\nAgent: No, it costs 25 dollars.", "It costs 20 dollars.", (0, 1)),  # the latest turn counts
        (PRICE, "It costs 20 dollars, for 3 people.", (1, 0)),
    ],
)
def test_a_value_is_held_against_the_latest_turn_that_has_to_do_with_it(prompt, reply, counts):
    assert kept_and_contradicted(ValueFinder(), prompt, reply) == counts


def test_consistency_is_not_faithfulness():
    test = [{"prompt": PRICE, "target": "-", "references": None}] * 2
    outcome = Outcome(["It costs 20 dollars, and opens at 9.", "It costs 25 dollars."])
    guards = ("consistent_over_turns", "faithful_numbers_and_names")
    figures = guard_figures(Data([], [], test), outcome, Scheme("chrf", guards, (), 8))
    assert figures == {"consistent_over_turns": 0.5, "faithful_numbers_and_names": round(1 / 3, 5)}
    nothing = guard_figures(Data([], [], test), Outcome(["Gladly.", "Gladly."]), Scheme("chrf", guards, (), 8))
    assert nothing == {}


PLACES = "八达岭长城 颐和园 清华大学 天安门广场 北京海洋馆 雍和宫 钟鼓楼 什刹海 卢沟桥 广化寺 全聚德烤鸭店"


def dialogues():
    return [
        {"prompt": f"User: {place}的电话是多少？", "target": f"{place}的电话是6200{number}。", "group": str(number)}
        for number, place in enumerate(PLACES.split())
    ]


def test_chinese_names_are_what_reply_and_user_share_but_not_what_every_dialogue_says():
    assert learn_names(dialogues()) == frozenset(PLACES.split())
    assert learn_names([{"prompt": "User: a mill", "target": "a mill", "group": None}]) == frozenset()


def test_slots_of_a_chinese_reply_are_more_than_its_digits():
    train = dialogues()
    asked = [{"prompt": "User: 去哪？", "target": "推荐八达岭长城。", "references": None}]
    scheme = Scheme("chrf", ("slot_f1",), (), 8, "zh")
    right = guard_figures(Data(train, [], asked), Outcome(["请去八达岭长城。"]), scheme)
    wrong = guard_figures(Data(train, [], asked), Outcome(["推荐颐和园。"]), scheme)
    assert (right, wrong) == ({"slot_f1": 1.0}, {"slot_f1": 0.0})


def test_turns_of_a_prompt():
    assert turns_of("cut off here\nUser: a\nb\nAgent: c") == [("", "cut off here"), ("User", "a\nb"), ("Agent", "c")]
