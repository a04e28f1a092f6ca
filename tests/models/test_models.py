"""Models by name: suggestions for mistyped names, presets, parameter counts."""

import dataclasses
import re

import numpy as np
import pytest

from tinyrec.models import MODELS, build, entry, make_config
from tinyrec.models.griffin import Griffin
from tinyrec.models.griffin_config import PRESETS, GriffinConfig
from tinyrec.nn import count


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_config("grifin"), "unknown model 'grifin'; did you mean 'griffin'?"),
        (lambda: make_config("lisp"), "unknown model 'lisp'; known: hawk, griffin, transformer"),
        (lambda: make_config("hawk", "smal"), "unknown preset of hawk 'smal'; did you mean 'small'?"),
        (lambda: make_config("hawk", d_modle=3), "unknown option of hawk 'd_modle'; did you mean 'd_model'?"),
        (lambda: build("hwak", GriffinConfig(), None), "unknown model 'hwak'; did you mean 'hawk'?"),
        (lambda: entry("transformers"), "unknown model 'transformers'; did you mean 'transformer'?"),
    ],
)
def test_a_mistyped_name_is_met_with_a_suggestion(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


def test_make_config_lets_overrides_win_over_the_name_and_the_preset():
    assert make_config("hawk", "small") == GriffinConfig(**PRESETS["small"], pattern=("recurrent",))
    assert make_config("griffin", "small", d_model=256, pattern=("local",)) == GriffinConfig(
        **{**PRESETS["small"], "d_model": 256, "pattern": ("local",)}
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config("hawk").d_model = 3


def test_build_remembers_the_name_and_the_config(tiny, name):
    assert tiny(name).name == name and tiny(name).config.window == 3
    assert MODELS[name].family == "griffin" and MODELS[name].model is Griffin


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [("griffin", "recurrentgemma-2b", 2_682_862_080), ("hawk", "tiny", None), ("griffin", "tiny", None)],
)
def test_parameter_counts(name, preset, expected, shaped_random):
    config = make_config(name, preset)
    counted = count(Griffin(config, shaped_random))
    assert counted == (expected or count(build(name, config, np.random.default_rng(0))))


@pytest.mark.parametrize(("preset", "billions"), [("paper-100m", 0.1), ("paper-1b", 1.3), ("paper-7b", 7.0)])
def test_the_presets_of_the_paper_have_about_the_size_in_their_name(name, preset, billions, shaped_random):
    """The names count what table 2 of the paper counts: within a third, the embedding (256k words) left out."""
    config = make_config(name, preset)
    model = Griffin(config, shaped_random)
    blocks = (count(model) - model.embedding.size) / 1e9
    assert blocks == pytest.approx(billions, rel=1 / 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config_of_every_model(name, preset):
    config = make_config(name, preset)
    assert config.pattern == MODELS[name].fixed["pattern"]
    assert {key: getattr(config, key) for key in PRESETS[preset]} == PRESETS[preset]
