"""The stages of the pipeline: one page that says what makes what.

VERSION counts up whenever the values a stage computes change; the tests with a table `..._BY_VERSION` fail when the
values moved and the version did not.
"""

from __future__ import annotations

from lm_core.artifact import (
    Checkpoint,
    Corpus,
    Decisions,
    DownstreamData,
    Evaluation,
    HeldOut,
    PictureEncoder,
    TokenDataset,
    Tokenizer,
    ValidCorpus,
)
from lm_core.store import Stage

COLLECT = Stage(
    name="collect",
    version=5,
    output=Corpus,
    function="lm_core.corpus.collect:collect",
    inputs={},
    external="lm_core.corpus.collect:source_digests",
)
CLEAN = Stage(
    name="clean",
    version=3,
    output=Decisions,
    function="lm_core.corpus.clean:clean",
    inputs={"corpus": Corpus},
)
DEDUPLICATE = Stage(
    name="deduplicate",
    version=3,
    output=Decisions,
    function="lm_core.corpus.deduplicate:deduplicate",
    inputs={"corpus": Corpus, "cleaning": Decisions},
)
PREPARE = Stage(
    name="prepare",
    version=1,
    output=DownstreamData,
    function="lm_core.downstream.prepare:prepare",
    inputs={"corpus": Corpus, "cleaning": Decisions, "duplicates": Decisions},
)
HOLD_OUT = Stage(
    name="hold_out",
    version=1,
    output=HeldOut,
    function="lm_core.downstream.hold_out:hold_out",
    external="lm_core.downstream.registered:source_digests",
    inputs={},
)
DECONTAMINATE = Stage(
    name="decontaminate",
    version=3,
    output=Decisions,
    function="lm_core.corpus.decontaminate:decontaminate",
    inputs={
        "corpus": Corpus,
        "cleaning": Decisions,
        "duplicates": Decisions,
        "examples": DownstreamData,
        "held_out": HeldOut,
    },
)
VALIDATE = Stage(
    name="validate",
    version=3,
    output=ValidCorpus,
    function="tasks.validation:validate",
    external="tasks.contracts:contract_digests",
    inputs={
        "corpus": Corpus,
        "cleaning": Decisions,
        "duplicates": Decisions,
        "contamination": Decisions,
        "examples": DownstreamData,
    },
)
TRAIN_TOKENIZER = Stage(
    name="train_tokenizer",
    version=2,
    output=Tokenizer,
    function="lm_core.tokenizer:train_tokenizer",
    inputs={"corpus": ValidCorpus},
)
TOKENIZE = Stage(
    name="tokenize",
    version=1,
    output=TokenDataset,
    function="lm_core.tokens:tokenize",
    inputs={"corpus": ValidCorpus, "tokenizer": Tokenizer},
)
PRETRAIN = Stage(
    name="pretrain",
    version=3,
    output=Checkpoint,
    function="lm_core.training.pretrain:pretrain",
    inputs={"tokens": TokenDataset, "tokenizer": Tokenizer},
)
IMPORT = Stage(
    name="import",
    version=1,
    output=Checkpoint,
    function="lm_core.model.import_huggingface:import_model",
    external="lm_core.model.import_huggingface:source_digests",
    inputs={},
)
READ_TASK = Stage(
    name="read_task",
    version=4,
    output=DownstreamData,
    function="lm_core.downstream.read_task:read_task",
    external="lm_core.downstream.read_task:source_digests",
    inputs={"held_out": HeldOut},
    optional=frozenset({"held_out"}),
)
READ_MIXTURE = Stage(
    name="read_mixture",
    version=1,
    output=DownstreamData,
    function="lm_core.downstream.read_mixture:read_mixture",
    external="lm_core.downstream.read_mixture:source_digests",
    inputs={"held_out": HeldOut},
    optional=frozenset({"held_out"}),
)
FINETUNE = Stage(
    name="finetune",
    version=5,
    output=Checkpoint,
    function="lm_core.downstream.finetune:finetune",
    inputs={"base": Checkpoint, "examples": DownstreamData, "corpus": ValidCorpus},
    optional=frozenset({"corpus"}),
)
EVALUATE = Stage(
    name="evaluate",
    version=2,
    output=Evaluation,
    function="lm_core.evaluation.language:evaluate_language_model",
    inputs={"base": Checkpoint, "tokens": TokenDataset, "corpus": ValidCorpus},
)
EVALUATE_TASK = Stage(
    name="evaluate_task",
    version=10,
    output=Evaluation,
    function="lm_core.evaluation.downstream:evaluate_task",
    inputs={
        "finetuned": Checkpoint,
        "from_random": Checkpoint,
        "examples": DownstreamData,
        "corpus": ValidCorpus,
    },
    optional=frozenset({"corpus"}),
)

PREFER = Stage(
    name="prefer",
    version=3,
    output=Checkpoint,
    function="lm_core.downstream.preference:prefer",
    inputs={"base": Checkpoint, "examples": DownstreamData},
)
EVALUATE_PREFERENCE = Stage(
    name="evaluate_preference",
    version=4,
    output=Evaluation,
    function="lm_core.evaluation.preference:evaluate_preference",
    inputs={
        "finetuned": Checkpoint,
        "reference": Checkpoint,
        "from_random": Checkpoint,
        "examples": DownstreamData,
    },
)
ABLATE = Stage(
    name="ablate",
    version=4,
    output=Evaluation,
    function="lm_core.evaluation.ablation:ablate",
    inputs={"variant_*": Checkpoint, "examples": DownstreamData},
)
CHOOSE = Stage(
    name="choose",
    version=6,
    output=Evaluation,
    function="lm_core.evaluation.zero_shot:evaluate_choice",
    external="lm_core.downstream.read_task:source_digests",
    inputs={"base": Checkpoint},
)
PROBE_BIAS = Stage(
    name="probe_bias",
    version=6,
    output=Evaluation,
    function="lm_core.evaluation.bias:evaluate_bias",
    external="lm_core.downstream.read_task:source_digests",
    inputs={"base": Checkpoint},
)

READ_PICTURES = Stage(
    name="read_pictures",
    version=2,
    output=DownstreamData,
    function="lm_core.vision.read_pictures:read_pictures",
    external="lm_core.downstream.read_task:source_digests",
    inputs={},
)
TEACH_ENCODER = Stage(
    name="teach_encoder",
    version=1,
    output=PictureEncoder,
    function="lm_core.vision.finetune_visual:teach_encoder",
    inputs={"base": Checkpoint, "examples": DownstreamData},
)
FINETUNE_VISUAL = Stage(
    name="finetune_visual",
    version=3,
    output=Checkpoint,
    function="lm_core.vision.finetune_visual:finetune_visual",
    inputs={"base": Checkpoint, "examples": DownstreamData, "encoder": PictureEncoder},
    optional=frozenset({"encoder"}),
)
EVALUATE_VISUAL = Stage(
    name="evaluate_visual",
    version=3,
    output=Evaluation,
    function="lm_core.evaluation.visual:evaluate_visual",
    inputs={
        "prefix": Checkpoint,
        "cross_attention": Checkpoint,
        "random_weights": Checkpoint,
        "question_only": Checkpoint,
        "encoder": PictureEncoder,
        "examples": DownstreamData,
    },
)
EVALUATE_CAPTIONS = Stage(
    name="evaluate_captions",
    version=3,
    output=Evaluation,
    function="lm_core.evaluation.visual_captions:evaluate_captions",
    inputs={
        "prefix": Checkpoint,
        "cross_attention": Checkpoint,
        "random_weights": Checkpoint,
        "examples": DownstreamData,
    },
)

# Kinds of declared tasks that one stage trains and scores by itself, from a base and a data folder:
# function(build, ScoreTaskConfig, *, base: Checkpoint), external="lm_core.downstream.read_task:source_digests".
WHOLE_TASKS: dict[str, Stage[Evaluation]] = {"choice": CHOOSE, "winogender": PROBE_BIAS, "crows_pairs": PROBE_BIAS}

PIPELINE = (
    COLLECT,
    CLEAN,
    DEDUPLICATE,
    PREPARE,
    HOLD_OUT,
    DECONTAMINATE,
    VALIDATE,
    TRAIN_TOKENIZER,
    TOKENIZE,
    PRETRAIN,
    FINETUNE,
    EVALUATE,
    EVALUATE_TASK,
)
