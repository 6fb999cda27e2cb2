"""Configuration: presets, precedence, and what is refused."""

import re

import pytest
import yaml

from toco.config import dump_yaml, parse_config
from toco.errors import ConfigError
from toco_train.config import TrainConfig, load_config, preset_names


def test_the_presets_are_these():
    assert preset_names() == ["demo", "voc-deit-b", "voc-vit-b"]


@pytest.mark.parametrize(
    ("preset", "backbone"),
    [
        ("voc-vit-b", "vit_base_patch16_224.orig_in21k_ft_in1k"),
        ("voc-deit-b", "deit_base_patch16_224.fb_in1k"),
    ],
)
def test_the_voc_presets_are_the_published_recipe(preset, backbone):
    config = load_config(preset, None, {})
    assert config.model.backbone == backbone
    assert config.model.pretrained
    assert config.model.freeze_position_embedding
    assert (config.model.image_size, config.contrast.local_crop_size, config.batch_size) == (448, 96, 4)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.head_lr_factor, optimizer.weight_decay) == (6e-5, 10, 0.01)
    assert (optimizer.betas, optimizer.warmup_steps, optimizer.warmup_ratio) == ((0.9, 0.999), 1500, 1e-6)
    assert (config.steps, optimizer.power) == (20_000, 0.9)
    assert (config.cam.low, config.cam.background, config.cam.high) == (0.25, 0.5, 0.7)
    assert config.cam.scales == (1.0, 0.5, 1.5)
    assert (config.contrast.temperature, config.contrast.momentum, config.contrast.num_local_crops) == (0.5, 0.9, 8)
    assert config.weights.model_dump() == {"cls": 1, "aux_cls": 1, "ptc": 0.2, "ctc": 0.5, "seg": 0.1, "reg": 0.05}
    assert (config.regularization.sigma_rgb, config.regularization.sigma_xy) == (15, 100)
    augmentation = config.augmentation
    assert (augmentation.rescale, augmentation.jitter, augmentation.jitter_probability) == (
        (0.5, 2.0),
        (0.4, 0.4, 0.2, 0.1),
        0.8,
    )
    assert (augmentation.blur_view1, augmentation.blur_view2, augmentation.blur_local) == (1.0, 0.1, 0.5)
    assert (augmentation.grey, augmentation.solarize_view2, augmentation.blur_sigma) == (0.2, 0.2, (0.1, 2.0))


def test_segmentation_joins_after_two_thousand_steps():
    config = load_config("voc-vit-b", None, {})
    before, after = config.phase_at(1999), config.phase_at(2000)
    assert (before.ptc, before.ctc, before.seg, before.reg) == (True, True, False, False)
    assert (after.ptc, after.ctc, after.seg, after.reg) == (True, True, True, True)


def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("steps: 7\noptimizer: {lr: 0.5}\nbatch_size: 3\n")
    config = load_config("voc-vit-b", file, {"steps": 9})
    assert (config.steps, config.optimizer.lr, config.batch_size) == (9, 0.5, 3)
    assert config.optimizer.weight_decay == 0.01


def test_a_configuration_survives_being_written_and_read():
    config = load_config("demo", None, {"seed": 5})
    assert parse_config(TrainConfig, yaml.safe_load(dump_yaml(config)), "it") == config


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"stepz": 1}, "unknown key 'stepz', did you mean 'steps'?"),
        ({"optimizer.lrr": 1}, "unknown key 'optimizer.lrr', did you mean 'lr'?"),
        ({"steps": 0}, "steps: input should be greater than 0 (got 0)"),
        ({"phases": [{"from_step": 5}]}, "phases must start at step 0"),
        ({"contrast.local_crop_size": 999}, "local_crop_size 999 is larger than model.image_size 448"),
        ({"contrast.local_crop_size": 447}, "num_local_crops 8 is more than the 4 places"),
        ({"model.backbone": {"width": 8}}, "cannot be pretrained"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence_with_the_nearest_name(flags, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        load_config(None, None, flags)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=re.escape("unknown preset 'voc-vitb', did you mean 'voc-vit-b'?")):
        load_config("voc-vitb", None, {})


@pytest.mark.parametrize(("content", "sentence"), [("a: [", "is not YAML"), ("- 1", "holds list, expected a mapping")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, sentence):
    file = tmp_path / "my.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config(None, file, {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(None, tmp_path / "absent.yaml", {})
