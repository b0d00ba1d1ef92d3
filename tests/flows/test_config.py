"""Configuration: what is refused, in one line, with the nearest valid name."""

import pytest

from flows.config import PipelineConfig, describe, field_names, load_config
from flows.presets import PRESETS, preset
from lm_core.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = preset(name)
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


def test_setting_changes_one_value():
    changed = load_config(preset("smoke"), settings=["pretrain.model.num_layers=3"])
    assert changed.pretrain.model.num_layers == 3
    assert changed.collect == preset("smoke").collect


@pytest.mark.parametrize("name", PRESETS)
def test_the_textbook_model_is_one_setting_away(name):
    before, changed = preset(name), load_config(preset(name), settings=["pretrain.model.kind=vanilla"])
    expected = before.pretrain.model.model_copy(update={"kind": "vanilla", "activation": "gelu"})
    assert changed.pretrain.model == expected
    assert changed.pretrain.optimization == before.pretrain.optimization
    assert load_config(before) == before
    with pytest.raises(UserError, match="activation=silu needs kind=decoder"):
        load_config(before, settings=["pretrain.model.kind=vanilla", "pretrain.model.activation=silu"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pretrain.model.num_layer=3", "did you mean pretrain.model.num_layers?"),
        ("pretran.train_tokens=3", "pretran"),
        ("pretrain.model.num_layers=0", "pretrain.model.num_layers"),
        ("pretrain.model.num_layers=many", "pretrain.model.num_layers"),
        ("pretrain", "section.field=value"),
        ("collect.sources[0].max_package_byte=3", "did you mean collect.sources[0].max_package_bytes?"),
        ("collect.sources[0].max_package_bytes=3", "collect.sources[0].max_package_bytes"),
        ("collect.sources[9].packages=[]", "there is no sources[9]"),
        ("collect.max_bytes[0]=3", "max_bytes is no list"),
    ],
)
def test_bad_settings_are_one_clear_line(setting, words):
    with pytest.raises(UserError) as caught:
        load_config(preset("smoke"), settings=[setting])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml_then_data_then_settings(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[pretrain]\ntrain_tokens = 4096\n[train_tokenizer]\nvocab_size = 400\n")
    config = load_config(preset("smoke"), toml=file, data=str(tmp_path), settings=["train_tokenizer.vocab_size=500"])
    assert config.pretrain.train_tokens == 4096
    assert config.train_tokenizer.vocab_size == 500
    assert config.collect.sources[0].kind == "local_files"


def test_a_source_is_changed_at_its_place(tmp_path):
    (tmp_path / "a.csv").write_text("id,story\n1,x\n")
    places = ["collect.sources[0].text_column=story", "collect.sources[0].encoding=cp1251"]
    config = load_config(preset("smoke"), data=str(tmp_path), settings=places)
    assert (config.collect.sources[0].text_column, config.collect.sources[0].encoding) == ("story", "cp1251")
    assert load_config(preset("smoke"), data=str(tmp_path), text_column="story").collect.sources == (
        load_config(preset("smoke"), data=str(tmp_path), settings=places[:1]).collect.sources
    )
    with pytest.raises(UserError, match="no effect without --data"):
        load_config(preset("smoke"), text_column="story")


def test_broken_toml_is_one_line(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[pretrain\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_config(preset("smoke"), toml=file)


def test_every_field_is_described():
    config = preset("smoke")
    lines = describe(config)
    assert len(lines) == len(field_names(PipelineConfig))
    assert all(not line.endswith("None") for line in lines)
