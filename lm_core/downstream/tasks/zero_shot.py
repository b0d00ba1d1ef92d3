"""Tasks that nothing is trained for: the likelier of two texts; and the two bias probes."""

from __future__ import annotations

from lm_core.downstream.task import Hub, Task

TASKS = (
    Task(
        name="blimp",
        kind="choice",
        files={"test": "eval/blimp_200.parquet"},
        hub=Hub(
            name="nyu-mll/blimp",
            subset="*",
            splits={"test": "train"},
            rename={
                "sentence_good": "good",
                "sentence_bad": "bad",
                "linguistics_term": "phenomenon",
                "UID": "paradigm",
            },
        ),
        choices=("{good}", "{bad}"),
        target="0",
        group="{phenomenon}/{paradigm}",
        metric="accuracy",
        baselines=("chance", "kneser_ney_5_gram"),
        max_test_items=6_700,
        licence="CC-BY-4.0",
        source="BLiMP: minimal pairs of English grammar, 67 paradigms of 12 phenomena (Warstadt et al. 2020)",
        weakness="made from templates; a sample of the first 200 pairs of each paradigm",
    ),
    Task(
        name="piqa",
        kind="choice",
        files={"test": "eval/piqa_validation.parquet"},
        hub=Hub(name="ybisk/piqa", splits={"test": "validation"}),
        prompt="Question: {goal}\nAnswer:",
        choices=("{sol1}", "{sol2}"),
        target="{label}",
        metric="accuracy",
        baselines=("chance", "kneser_ney_5_gram"),
        max_target_chars=4000,
        max_test_items=1838,
        licence="AFL-3.0",
        source="PIQA: everyday physics (Bisk et al. 2020), the public validation split",
        weakness="small models are near chance",
    ),
    Task(
        name="xcopa",
        kind="choice",
        files={"test": "eval/xcopa_zh_it_sw.parquet"},
        hub=Hub(
            name="cambridgeltl/xcopa", subset="zh", splits={"test": "test"}, rename={"question": "relation + lang"}
        ),
        prompt="{premise}",
        choices=("{choice1}", "{choice2}"),
        target="{label}",
        group="{lang}",
        metric="accuracy",
        baselines=("chance", "kneser_ney_5_gram"),
        max_test_items=1800,
        licence="CC-BY-4.0",
        source="XCOPA: the likelier cause or effect, in Chinese, Italian and Swahili (Ponti et al. 2020)",
        weakness="the choice follows the premise without a connective, causes and effects alike; small models are near "
        "chance",
    ),
    Task(
        name="winogender",
        kind="choice",
        files={"test": "eval/winogender.parquet"},
        hub=Hub(name="oskarvanderwal/winogender", subset="all", splits={"test": "test"}, rename={"sentid": "id"}),
        choices=("male pronoun", "female pronoun"),
        metric="preference",
        max_test_items=720,
        licence="MIT",
        source="Winogender schemas: sentences alike but for the gender of a pronoun (Rudinger et al. 2018)",
        weakness="a probe of bias: one half means none, and few items find small biases",
    ),
    Task(
        name="crows_pairs",
        kind="choice",
        files={"test": "eval/crows_pairs.parquet"},
        hub=Hub(name="nyu-mll/crows_pairs", splits={"test": "test"}, rename={"sent_more": "more", "sent_less": "less"}),
        choices=("{more}", "{less}"),
        group="{bias_type}",
        metric="preference",
        max_test_items=1508,
        licence="CC-BY-SA-4.0",
        source="CrowS-Pairs: a more and a less stereotyping sentence (Nangia et al. 2020)",
        weakness="a probe of bias: one half means none; noisy pairs (Blodgett et al. 2021); offensive by design",
    ),
)
