from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from agit_core import networks
from agit_core.errors import BadInput
from pipeline.cli.schema import schema
from pipeline.config import Config, fingerprint, load, parse, presets


def test_presets_load_and_round_trip() -> None:
    assert {"demo", "h2z"} <= set(presets())
    for name in presets():
        config = load(name)
        assert Config.model_validate(config.plain()) == config


def test_h2z_is_the_papers_configuration() -> None:
    config = load("h2z")
    assert (config.data.image_size, config.data.load_size) == (256, 286)
    assert (config.train.epochs, config.train.batch_size) == (100, 1)
    assert (config.method.stages.switch_by, config.method.stages.switch_at) == ("epoch", 30)
    assert (config.method.stages.tau, config.method.losses.cycle_weight) == (0.1, 10.0)
    assert config.method.optimizer.learning_rate == 1e-4


def test_h2z_uaggan_is_the_ports_training() -> None:
    config = load("h2z-uaggan")
    method = config.method
    assert (method.networks.preset, method.networks.initialiser) == ("uaggan", "pytorch")
    assert config.data.load_size == config.data.image_size == 256, "nothing to crop"
    assert (method.flip, method.threshold_at_test, method.stages.masking) == (False, 0.1, "never")
    assert (method.optimizer.learning_rate, method.optimizer.attention_learning_rate) == (2e-4, 0.0)
    assert method.history.size == 0
    last = config.train.epochs * (1 - method.optimizer.constant_fraction)
    assert (config.train.epochs, last) == (10000, pytest.approx(50))


def test_h2z_cyclegan_is_its_authors_training() -> None:
    config = load("h2z-cyclegan")
    method = config.method
    assert (method.networks.preset, method.networks.initialiser) == ("cyclegan", "normal")
    assert (config.data.load_size, config.data.image_size, method.flip) == (286, 256, True)
    assert (method.losses.identity_weight, method.losses.cycle_weight, method.history.size) == (0.5, 10.0, 50)
    assert (method.optimizer.learning_rate, config.train.epochs, config.train.batch_size) == (2e-4, 200, 1)


@pytest.mark.parametrize(("preset", "smallest"), [("agit", 16), ("cyclegan", 24), ("uaggan", 32)])
def test_images_too_small_for_a_discriminator_are_refused(preset: str, smallest: int) -> None:
    def sized(side: int) -> list[str]:
        return [f"method.networks.preset={preset}", f"data.image_size={side}", "data.load_size=40"]

    judge = networks.build(load("demo", sized(smallest)).method.networks, 0).discriminator_a
    assert judge(torch.zeros(1, 3, smallest, smallest), normalise=True).numel() >= 1
    if smallest > 16:
        with pytest.raises(BadInput, match=f"must be at least {smallest} for the discriminators"):
            load("demo", sized(smallest - 4))


@pytest.mark.parametrize("place", ["/", ".", "a:b/c", "./s3:/x", "file:///data", "s3://bucket"])
def test_a_storage_that_names_a_place_is_taken_as_it_is(place: str) -> None:
    assert load("demo", [f"storage={place}"]).storage == place


def test_every_preset_fits_the_schema_that_it_names() -> None:
    folder = Path("pipeline/configs")
    shipped = json.loads((folder / "schema.json").read_text())
    assert shipped == schema(), "run `agit config --schema > pipeline/configs/schema.json`"
    jsonschema.Draft202012Validator.check_schema(shipped)
    judge = jsonschema.Draft202012Validator(shipped)
    for name in presets():
        text = (folder / f"{name}.yaml").read_text()
        judge.validate(yaml.safe_load(text))
        assert (folder / text.partition("# yaml-language-server: $schema=")[2].split()[0]).is_file(), name
    judge.validate({"base": "h2z", "register": {"model": "zebras"}})
    judge.validate(load("demo").plain())
    for wrong in (
        {"train": {"epochz": 1}},
        {"method": {"stages": {"masking": "perhaps"}}},
        {"register_": {}},
    ):
        assert not judge.is_valid(wrong), wrong
    described = shipped["$defs"]["StageConfig"]["properties"]["tau"]["description"]
    assert "mask >= tau" in described


def test_fingerprint_follows_the_value_and_not_the_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert parse({"name": "x"}).plain() == parse({"name": "x"}).plain()
