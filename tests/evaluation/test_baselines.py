"""The classical baselines that text is measured against are as strong as their simple form can be."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from lm_core.downstream.config import EvaluateTaskConfig
from lm_core.downstream.task import Task, literals_around
from lm_core.downstream.tasks.registry import find_tasks
from lm_core.evaluation import baselines
from lm_core.evaluation.dictionary import dictionary, likeliest_words
from lm_core.evaluation.downstream import scheme_of, score_outcomes, write_evaluation
from lm_core.evaluation.outcome import Data, Outcome, Scheme, ask_baseline
from lm_core.evaluation.recompute import recomputed, scores_by_sql
from tests.downstream.tiny_world import new_build


def item(prompt, target):
    return {"prompt": prompt, "target": target, "references": None}


def answers(name, scheme, *, train, test, validation=()):
    """A baseline's answers; those asked here need no checkpoint."""
    return ask_baseline(name, Data(train, list(validation), test), scheme, None)[1].predictions


def test_the_lead_of_an_article_follows_its_title_whatever_its_paragraphs():
    scheme = scheme_of(EvaluateTaskConfig(task="summarisation_digitalgov",
                                          declared=find_tasks(["summarisation_digitalgov"])[0]))  # fmt: skip
    train = [item("A Title. With a stop\nThe lead stands. Then more.\n\nEven more.", "The lead stands.")]
    test = [
        item("Old Mills\nA mill [grinds](http://x.y) grain. Rain falls.\n\nA second paragraph.", "-"),
        item("Old Mills\nOne sentence alone.", "-"),
    ]
    assert answers("lead_sentence", scheme, train=train, test=test) == ["A mill grinds grain.", "One sentence alone."]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_training_summaries_say_how_many_sentences_a_lead_has(count):
    said = ["One is here.", "Two comes after.", "Three is last.", "Four stays out."]
    train = [item(" ".join(said), " ".join(said[:count]))]
    scheme = Scheme("rouge_l", (), ("lead_sentence",), 8)
    made = answers("lead_sentence", scheme, train=train, test=[item("A b c. D e f. G h i. J k l.", "-")])
    assert made == [" ".join(["A b c.", "D e f.", "G h i."][:count])]


@pytest.mark.parametrize(
    ("task", "prompt", "lead"),
    [
        ("summary", "Summarise the documentation of x in one line.\n\nFirst here. Second.", "First here."),
        ("answer", "pkg.f: Sift the flour.\n\nWhat does the parameter x of f do?", "Sift the flour."),
    ],
)
def test_the_lead_of_an_embedded_task_is_no_instruction_and_no_question(task, prompt, lead):
    scheme = scheme_of(EvaluateTaskConfig(task=task))
    assert answers("lead_sentence", scheme, train=[item(prompt, lead)], test=[item(prompt, "-")]) == [lead]


def test_where_no_answer_recurs_the_most_typical_one_is_given():
    targets = ["a mill", "the mill by the river", "the mill by the weir", "z"]
    test = [item("x", "-")] * 2
    train = [item(str(number), target) for number, target in enumerate(targets)]
    made = answers("majority", Scheme("rouge_l", (), ("majority",), 8), train=train, test=test)
    assert made == ["the mill by the river"] * 2
    train.append(item("again", "z"))
    assert answers("majority", Scheme("rouge_l", (), ("majority",), 8), train=train, test=test) == ["z"] * 2


def test_a_baseline_without_a_likelihood_has_its_other_figures(tmp_path):
    """Of a command, say: bits per byte is the score, and the nearest neighbour stands in how many it gets exactly."""
    scheme = Scheme("bits_per_byte", ("same_text",), ("nearest_neighbour",), 8)
    test = [item(f"list {n}", f"ls {n}") | {"item_id": str(n), "group": None, "doc_id": None} for n in range(4)]
    bits = np.array([8.0, 16.0, 8.0, 16.0])
    outcomes = {
        "model": Outcome(["ls 0", "ls 1", "no", "no"], bits, np.full(4, 4.0)),
        "random_weights": Outcome(["", "", "", ""], bits * 2, np.full(4, 4.0)),
        "nearest_neighbour": Outcome(["ls 0", "no", "no", "no"]),
    }
    data = Data([], [], test)
    config = EvaluateTaskConfig(task="own", num_resamples=100)
    scores = score_outcomes(config, scheme, data, outcomes)
    assert scores.summary["baselines"] == {"random_weights": 6.0} and scores.summary["score"] == 3.0
    exact = {name: figures.get("same_text") for name, figures in scores.summary["secondary"].items()}
    assert exact == {"model": 0.5, "random_weights": None, "nearest_neighbour": 0.25}
    build = new_build(tmp_path, "score")
    write_evaluation(build, "own", test, outcomes, scores)
    rows = pq.read_table(build.folder / "predictions.parquet").to_pylist()
    assert [row["score"] for row in rows if row["system"] == "nearest_neighbour"] == [None] * 4
    assert scores_by_sql(build.folder / "predictions.parquet", "bits_per_byte") == {"model": 3.0, "random_weights": 6.0}
    assert recomputed(build.folder / "predictions.parquet", config.model_copy(update={"declared": TASK})) == (
        scores.summary
    )


TASK = Task(name="own", kind="answer", files={"all": "x.jsonl"}, prompt="{a}", target="{b}", metric="bits_per_byte",
            guards=("same_text",), baselines=("nearest_neighbour",))  # fmt: skip


def test_a_template_says_what_stands_around_its_text():
    assert literals_around("{title}\n{document}") == ("\n", "")
    assert literals_around("{document}") == literals_around("\n{document} ") == literals_around("") == ("", "")
    assert literals_around("{question}\n{context}\nAnswer:", "context") == ("\n", "\nAnswer:")
    assert literals_around("{context}\n\n{question}", "context") == ("", "\n\n")


def test_the_neighbour_of_a_conversation_is_found_by_what_it_has_come_to():
    train = [
        item("User: grain please\nAgent: how much?\nUser: two sacks", "two sacks it is"),
        item("User: flour please\nAgent: how much?\nUser: one bag", "one bag it is"),
    ]
    asked = [item("User: flour please\nAgent: how much?\nUser: two sacks", "two sacks it is")]
    scheme = Scheme("chrf", (), ("nearest_neighbour",), 8)
    made = answers("nearest_neighbour", scheme, train=train, validation=asked, test=asked)
    assert made == ["two sacks it is"]
    by_the_first = [item(asked[0]["prompt"], "one bag it is")]
    whole = "User: flour please\nAgent: how much?\nUser: flour"
    assert answers("nearest_neighbour", scheme, train=train, validation=by_the_first, test=[item(whole, "-")]) == [
        "one bag it is"
    ]
    assert baselines.nearest_neighbour([("red berry tart", "3"), ("sky", "1")], [], len, ["berry"]) == ["3"]


def test_prompts_without_a_word_leave_the_commonest_answer():
    """Emoji alone, or a last line that is a mark: the vectorizer has no vocabulary then."""
    train = [("☔", "rain"), ("☔☔", "rain"), ("☀", "sun")]
    labels, sure = baselines.tfidf_logistic_regression(*zip(*train, strict=True), ["☀"])
    assert labels == ["rain"] and sure == pytest.approx([2 / 3])
    marked = [(f"User: {word}\n=>", word) for word in ("rain", "sun", "wind")]
    asked = ["User: sun\n=>"]
    assert baselines.nearest_neighbour(marked, asked, lambda made: float(made == ["sun"]), asked) == ["sun"]


def test_a_dictionary_learns_words_and_copies_what_it_has_not_seen():
    known = ["the house", "the book", "a house", "a book"]
    french = ["la maison", "la livre", "une maison", "une livre"]
    assert dictionary(known, french, ["the book", "A ``the`` %s house, Weir!"]) == [
        "la livre",
        "Une ``the`` %s maison, Weir!",
    ]


def test_a_dictionary_learns_from_every_pair_and_needs_no_spaces():
    words = {"mill": "磨坊", "rain": "下雨", "flour": "面粉", "river": "河流"}
    pairs = [(f"{a} {b}", words[a] + words[b]) for a in words for b in words if a != b]
    filler = [("x", "y")] * 5000
    sources, targets = zip(*filler, *pairs, strict=True)
    assert dictionary(sources, targets, ["rain mill", "river %d"]) == ["下雨磨坊", "河流%d"]


def test_the_dictionary_is_ibm_model_1():
    # After the first round t(la | the) is 1/2, as the three meetings of (the, .) share two half tokens of each text.
    assert likeliest_words([["the", "house"], ["the"]], [["la", "maison"], ["la"]]) == {"the": "la", "house": "maison"}
    assert likeliest_words([["x"]], [[]]) == {}
