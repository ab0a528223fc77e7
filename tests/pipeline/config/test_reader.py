from __future__ import annotations

from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline.config import load


def refused(folder: Path, text: str, sentence: str) -> None:
    """Check that a configuration file is refused in one line that holds the sentence."""
    file = folder / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        load(str(file))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_every_section() -> None:
    config = load(
        "demo",
        [
            "storage=s3://bucket/prefix",
            "data.source=./photos",
            "train.max_steps=7",
            "method.optimizer.learning_rate=1e-3",
            "method.networks.attention=false",
            "register.model=zebras of v1.2",
            "evaluate.inception=null",
        ],
    )
    assert config.storage == "s3://bucket/prefix"
    assert config.data.source == "./photos"
    assert config.train.max_steps == 7
    assert config.method.optimizer.learning_rate == 1e-3
    assert config.method.networks.attention is False
    assert config.register_.model == "zebras of v1.2"
    assert config.method.stages.switch_by == load("demo").method.stages.switch_by


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.max_stepss=3", "did you mean 'max_steps'"),
        ("trian.max_steps=3", "did you mean 'train'"),
        ("method.optimizer.learning_rat=1", "did you mean 'learning_rate'"),
        ("method.networkz.attention=true", "did you mean 'networks'"),
        ("train.max_steps=many", "train.max_steps"),
        ("train.max_steps=0", "train.max_steps"),
        ("train.max_steps", "key=value"),
        ("data.source.deeper=1", "'source' is a value"),
        ("data.image_size=66", "multiple of 4"),
        ("data.load_size=32", "must not be smaller"),
        ("method.stages.tau=1.5", "method.stages.tau"),
        ("name=../up", "name"),
        ("storage=", "storage: is empty; give a folder or s3://bucket/prefix"),
        ("storage= ", "storage: is empty"),
        ("storage=s3://", "storage: 's3://' names no bucket or folder"),
        ("storage=s3:", "storage: 's3:' names no bucket or folder"),
        ("storage=s3:///prefix", "storage: 's3:///prefix' names no bucket or folder"),
        ("storage=s3:/bucket/prefix", "storage: 's3:/bucket/prefix' has one slash"),
        ("register.model=horses/zebras", "register.model"),
        ("register.model=models:zebras", "register.model"),
        ("register.model=zebra's", "register.model"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        load("demo", [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("train: [1, 2", "not valid YAML"),
        ("method: {optimizer: {learning_rate: .inf}}", "positive and finite"),
        ("name: " + "a" * 300, "at most 200 characters"),
        ("data: {source: ''}", "data.source: String should have at least 1 character"),
        ("train:\n  epochz: 3\n", "did you mean 'epochs'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    refused(tmp_path, text, sentence)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(BadInput, match="cannot be read"):
        load(str(path))


def test_a_name_too_long_for_any_file_is_no_traceback() -> None:
    with pytest.raises(BadInput, match="too long"):
        load("x" * 5000)


def test_a_folder_may_be_called_what_yaml_takes_for_a_comment() -> None:
    assert load("demo", ["data.source=./my photos #2"]).data.source == "./my photos #2"


@pytest.mark.parametrize("text", ["2026", "007", "1e3", "true", "2026-11-27", "null"])
def test_a_string_may_look_like_another_type(text: str) -> None:
    config = load("demo", [f"cluster.env.RUN={text}", f"name={text}"])
    assert (config.cluster.env["RUN"], config.name) == (text, text)
    assert load("demo", ["train.max_steps=2026"]).train.max_steps == 2026


def test_a_number_in_place_of_a_string_must_be_quoted(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cluster:\n  env:\n    THREADS: 1\n")
    with pytest.raises(
        BadInput, match=r"cluster.env.THREADS: expected a string, not int; write it in quotes"
    ):
        load(str(file))


def test_an_unknown_config_names_the_nearest_preset(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'demo'"):
        load("demp")
    with pytest.raises(BadInput, match="no config file"):
        load(str(tmp_path / "none.yaml"))


def test_a_file_is_a_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain:\n  epochs: 3\n")
    config = load(str(path), ["train.epochs=4"])
    assert (config.name, config.train.epochs) == ("mine", 4)


def test_a_file_extends_a_preset_and_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/wide.yaml").write_text(
        "base: h2z\nname: wide\nmethod: {networks: {generator_width: 64}}\ntune: {space: {seed: [1, 2]}}\n"
    )
    (tmp_path / "longer.yaml").write_text("base: mine/wide.yaml\ntrain: {epochs: 150}\n")
    config, preset = load(str(tmp_path / "longer.yaml"), ["train.batch_size=2"]), load("h2z")
    assert (config.name, config.train.epochs, config.train.batch_size) == ("wide", 150, 2)
    assert config.method.networks.generator_width == 64
    assert config.method.stages == preset.method.stages
    assert config.data == preset.data
    assert config.tune.space == {"seed": [1, 2]}, "a mapping that is a value is replaced as a whole"
    assert config.tune.trials == preset.tune.trials == 12


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: h2zz\n", "base: unknown config 'h2zz'; did you mean 'h2z'"),
        ("base: none.yaml\n", "base: no config file at"),
        ("base: 3\n", "base: expected a preset's name or a YAML file, not int"),
        ("base: [h2z, h2z64]\n", "not list"),
        ("base: wrong.yaml\n", "base: it extends itself"),
        ("base: h2z\ntrian: {epochs: 1}\n", "unknown key 'trian'; did you mean 'train'"),
        ("base: h2z\nmethod: {networks: {deep: {er: 1}}}\n", "unknown key 'method.networks.deep'"),
        ("bas: h2z\n", "did you mean 'base'"),
    ],
)
def test_a_base_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    refused(tmp_path, text, sentence)


def test_the_base_is_no_setting() -> None:
    with pytest.raises(BadInput, match="--set cannot change the base"):
        load("demo", ["base=h2z"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\ndata:\n  limit: 3\ndata:\n  workers: 1\n", "'data' stands in line 2 and again in line 4"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "'epochs' stands in line 2"),
        ("train: {epochs: 1, 'epochs': 2}\n", "'epochs' stands in line 1 and again in line 1"),
        ("name: !!bool maybe\n", "a value is not what its tag"),
        ("name: !!timestamp x\n", "a value is not what its tag"),
        ("name: !!int ''\n", "a value is not what its tag"),
        ("tune: !!map [1]\n", "a value is not what its tag"),
        ("data:\n  source: 2023-11-31\n", "not valid YAML: day"),
        ("seed: !!int three\n", "not valid YAML"),
        ("tune: &all\n  space: {x: *all}\n", "'&all' refers to itself"),
        ("report: " + "{a: " * 3000, "nested too deeply"),
    ],
    ids=lambda value: value[:20],
)
def test_ambiguous_yaml_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        load(str(path))


def test_an_anchor_may_be_used_again_and_a_merged_key_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: &d {limit: 3, workers: 2}\nname: x\ntrain: {workers: 1}\n")
    assert load(str(path)).data.limit == 3
    path.write_text("report: &r {hero_images: 2}\ntune: {space: {a: &z [1, 2], b: *z}}\n")
    assert load(str(path)).tune.space == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("value", ["2023-13-01", "!!int three", "9" * 5000, "[" * 4000])
def test_a_value_that_yaml_cannot_build_is_refused_in_a_sentence(value: str) -> None:
    with pytest.raises(BadInput, match="is not a value that YAML can build"):
        load("demo", [f"data.source={value}"])
