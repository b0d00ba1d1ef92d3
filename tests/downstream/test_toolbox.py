"""The generalisation toolbox and the strategies: each does what it says, and a setting without effect is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lm_core.downstream.augmentation import Augmentation, neighbours_of
from lm_core.downstream.classifier import Ensemble, PooledClassifier, load_finetuned
from lm_core.downstream.config import FinetuneConfig
from lm_core.downstream.encoding import Row
from lm_core.downstream.finetune import finetune
from lm_core.downstream.mixture import training_items
from lm_core.downstream.replay import Replay
from lm_core.downstream.strategies import Gradual
from lm_core.downstream.subwords import BagOfSubwords, out_of_fold
from lm_core.downstream.variants import PLAIN, VARIANTS, variants_of
from lm_core.errors import UserError
from lm_core.model.losses import IGNORE
from lm_core.model.weights import load_model
from lm_core.tokenizer import load_tokenizer
from lm_core.training.config import OptimizationConfig

OPTIMIZATION = OptimizationConfig(batch_tokens=1024, micro_batch_tokens=1024)


def config(**fields):
    return FinetuneConfig(**{"task": "topic", "max_steps": 3, "optimization": OPTIMIZATION} | fields)


def tune(world, name, base=None, **fields):
    build = world.build(f"toolbox_{name}")
    made = finetune(build, config(**fields), base=base or world.base, examples=world.examples, corpus=world.valid)
    return build.folder, made


def with_text(world):
    """The base as the store knows it, with its own text."""
    return dataclasses.replace(world.base, inputs={"tokens": f"tokens/{world.tokens.folder.name}"})


def test_blocks_join_from_the_top_down_and_lower_ones_learn_slower(world):
    trunk = load_model(world.base.folder)
    model = PooledClassifier(trunk, ["a", "b"])
    gradual = Gradual(model, config(strategy="gradual", layer_decay=0.5, unfreezing_fraction=0.75), 8)
    rates = {name: gradual.rate_of(name) for name, _ in model.named_parameters()}
    assert rates["head"] == 1 and rates["trunk.layers.1.mlp.up_proj.weight"] == 0.5
    assert rates["trunk.layers.0.mlp.up_proj.weight"] == 0.25 and rates["trunk.embed_tokens.weight"] == 0.125
    learning = []
    for step in range(8):
        gradual.before_step(step)
        learning.append(sum(p.requires_grad for p in model.parameters()))
    assert learning == sorted(learning) and learning[0] == 2 and learning[-1] == len(list(model.parameters()))


def test_every_strategy_and_regulariser_gives_other_weights(world):
    settings = {
        "plain": {},
        "gradual": {"strategy": "gradual"},
        "swap": {"token_swap": 0.3},
        "max": {"pooling": "mean_max"},
        "layers": {"pooling": "all_layers"},
        "weights": {"members": 2, "combine": "weights"},
    }
    made = {tune(world, name, **fields)[1]["weights_sha256"] for name, fields in settings.items()}
    assert len(made) == len(settings)


def test_an_ensemble_is_the_mean_of_its_members_logits(world):
    folder, _ = tune(world, "ensemble", members=3)
    model = load_finetuned(folder)
    assert isinstance(model, Ensemble) and len(model.members) == 3
    tokens, lengths = torch.randint(0, 300, (2, 12)), torch.tensor([12, 7])
    alone = torch.stack([member.scores(tokens, lengths) for member in model.members])
    assert alone.std(0).max() > 0 and torch.allclose(model.scores(tokens, lengths), alone.mean(0))
    with pytest.raises(UserError, match="combine=logits needs a task with labels"):
        tune(world, "ensemble_of_texts", task="summary", members=2)


def test_a_bag_of_subwords_learns_what_a_word_says(world):
    folder, _ = tune(world, "bag", num_buckets=512, num_epochs=9, max_steps=12)
    model = load_finetuned(folder)
    assert model.bag is not None and model.bag.weight.abs().max() > 0 and model.bag.rarity.max() > 1


def test_a_bag_tells_labels_apart_alone_and_its_answer_is_the_mean_with_the_trunks(world):
    tokenizer = load_tokenizer(world.base.file("tokenizer.json"))
    texts = [f"{word} {filler}" for word in ("good", "bad", "neither") for filler in ("one", "two", "three", "four")]
    rows = tokenizer.encode_batch(texts)
    labels = [place // 4 for place in range(12)]
    model = PooledClassifier(load_model(world.base.folder), ("a", "b", "c", "unseen"), num_buckets=512)
    model.bag.fit(rows, labels, tokenizer)
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    own = model.bag(tokens)[torch.arange(12), lengths - 1]
    assert own.argmax(1).tolist() == labels
    assert own.softmax(-1)[:, 3].max() < 1e-6
    torch.nn.init.normal_(model.head, std=0.1)
    states = model.trunk.hidden(tokens).float().cumsum(1)[torch.arange(12), lengths - 1] / lengths[:, None]
    assert torch.allclose(model.scores(tokens, lengths), (own + states @ model.head.T) / 2, atol=1e-3)


def test_a_text_is_judged_by_bags_that_have_not_seen_it(world):
    tokenizer = load_tokenizer(world.base.file("tokenizer.json"))
    texts = [f"{word} {n}" for word in ("good", "bad", "neither") for n in range(8)] + ["unlike all others"]
    rows, labels = tokenizer.encode_batch(texts), [*(place // 8 for place in range(24)), 3]
    bag = BagOfSubwords(tokenizer.vocab_size, 4, 512)
    bag.fit(rows, labels, tokenizer)
    heard = out_of_fold(bag, rows, labels, tokenizer, seed=0)
    assert (heard.argmax(1)[:24] == torch.tensor(labels[:24])).all()
    # Who has not seen the only text of a label cannot know it; the score is still a number to learn on.
    assert heard[24].argmax() != 3 and heard.min() > -100
    own = torch.cat([bag(torch.tensor([row]))[:, -1] for row in rows])
    assert own[24].argmax() == 3


def test_the_trunk_is_taught_what_is_left_to_say_beside_the_bag(world):
    model = PooledClassifier(load_model(world.base.folder), ("a", "b"), num_buckets=64, learns="residual")
    tokens, targets = torch.randint(0, 300, (2, 9)), torch.full((2, 9), IGNORE)
    targets[:, -1] = torch.tensor([0, 1])
    heard = torch.tensor([[4.0, -4.0], [0.0, 0.0]])
    loss = model.loss_sum(tokens, targets, beside=heard)
    wanted = torch.nn.functional.cross_entropy(heard, torch.tensor([0, 1]), reduction="sum")
    assert loss.item() == pytest.approx(wanted.item())
    loss.backward()
    pull = model.head.grad.abs().sum()
    model.head.grad = None
    model.loss_sum(tokens[:1], targets[:1], beside=heard[:1]).backward()
    assert model.head.grad.abs().sum() < 0.2 * pull  # what the bag knows already teaches the trunk little


def test_the_state_of_a_classifier_can_be_averaged(world):
    averaged = OPTIMIZATION.model_copy(update={"ema_decay": 0.9})
    folder, _ = tune(world, "ema_bag", num_buckets=64, members=3, combine="weights", optimization=averaged)
    bag, plain = load_finetuned(folder).bag, load_finetuned(tune(world, "plain_bag", num_buckets=64)[0]).bag
    assert torch.equal(bag.folded, plain.folded) and torch.allclose(bag.rarity, plain.rarity)


def test_padding_on_the_right_changes_no_score_of_the_bag():
    bag = BagOfSubwords(50, 3, 64)
    torch.nn.init.normal_(bag.weight)
    tokens = torch.randint(0, 50, (2, 9))
    assert torch.allclose(bag(tokens)[:, :5], bag(tokens[:, :5]))
    assert not torch.allclose(bag(tokens)[:, 4], bag(tokens.flip(1))[:, 4])


def test_swapped_tokens_are_neighbours_and_the_ends_stay(world):
    trunk = load_model(world.base.folder)
    nearest = neighbours_of(trunk)
    row = Row(list(range(20, 60)), [IGNORE] * 39 + [1])
    (changed,) = Augmentation(config(token_swap=0.5), trunk)([row], 3)
    moved = [(old, new) for old, new in zip(row.tokens, changed.tokens, strict=True) if old != new]
    assert moved and all(new in nearest[old] for old, new in moved)
    assert (changed.tokens[0], changed.tokens[-1], changed.targets[-1]) == (20, 59, 1)
    (shorter,) = Augmentation(config(token_swap=0.5, from_random=True), trunk)([row], 3)
    assert len(shorter.tokens) < 40 and set(shorter.tokens) <= set(row.tokens)


def test_replay_gives_its_share_of_the_targets(world):
    replay = Replay(config(replay_fraction=0.5), with_text(world), 3)
    rows = [Row([1, 2], [IGNORE, 0])] * 40
    counts = []
    for step in range(20):
        replayed = replay(rows, step)[40:]
        targets = [t for row in replayed for t in row.targets if t != IGNORE]
        assert min(targets) >= 3
        counts.append(len(targets))
    assert np.mean(counts) == pytest.approx(40, rel=0.2)
    with pytest.raises(UserError, match="not in this store"):
        Replay(config(replay_fraction=0.5), world.base, 3)


def test_replay_keeps_more_of_the_base(world):
    forgotten = {}
    for share in (0.0, 0.5):
        fields = {"max_steps": 12, "num_epochs": 9, "replay_fraction": share, "max_forgetting": 0}
        made = tune(world, f"replay_{share}", base=with_text(world), **fields)[1]["forgetting"]
        forgotten[share] = made["after"] - made["before"]
    assert forgotten[0.5] < forgotten[0.0]


def test_a_mixture_repeats_small_tasks_and_writes_labels(world):
    mixed = config(task="mixture", mixture=("topic", "answer"), mixture_temperature=4.0)
    items = training_items(world.examples, world.valid, mixed, world.build("mixed").runtime)
    share = {task: sum(item["task"] == task for item in items) for task in mixed.mixture}
    assert min(share.values()) > 0.4 * len(items)
    folder, made = tune(world, "mixture", task="mixture", mixture=("topic", "answer"))
    assert not isinstance(load_finetuned(folder), PooledClassifier) and made["train_items"] == len(items)
    with pytest.raises(UserError, match="poetry of the mixture has no training examples"):
        tune(world, "mixture_wrong", task="mixture", mixture=("topic", "poetry"))


@pytest.mark.parametrize(
    "fields",
    [{"lora_rank": 4}, {"layer_decay": 0.5}, {"combine": "weights"}, {"replay_fraction": 0.2, "from_random": True}],
)
def test_a_setting_without_effect_is_refused(fields):
    with pytest.raises(ValidationError, match="no effect"):
        config(**fields)


def test_variants_change_one_thing_each():
    made = variants_of(config(num_buckets=64), labels=True)
    assert {v.name for v in VARIANTS} - set(made) == {"with_subwords"}
    assert made[PLAIN][1] == config(num_buckets=64) and len({v.model_dump_json() for _, v in made.values()}) == len(
        made
    )
    assert "ensemble" not in variants_of(config(), labels=False)
