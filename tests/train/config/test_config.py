"""Configuration: presets, precedence, and what is refused."""

import re

import pytest
import yaml

from toco_core.config import dump_yaml, parse_config
from toco_core.errors import ConfigError
from toco_train.config import TrainConfig, load_config, preset_names


def test_the_presets_are_these():
    assert preset_names() == ["coco-deit-b", "coco-vit-b", "demo", "voc-deit-b", "voc-vit-b"]


VIT_B, DEIT_B = "vit_base_patch16_224.orig_in21k_ft_in1k", "deit_base_patch16_224.fb_in1k"
RECIPES = {  # what differs: backbone, steps, batch, low / background / high, temperature
    "voc-vit-b": (VIT_B, 20_000, 4, (0.25, 0.5, 0.7), 0.5),
    "voc-deit-b": (DEIT_B, 20_000, 4, (0.25, 0.5, 0.7), 0.5),
    "coco-vit-b": (VIT_B, 80_000, 8, (0.25, 0.45, 0.65), 1.0),
    "coco-deit-b": (DEIT_B, 80_000, 8, (0.25, 0.45, 0.65), 1.0),
}


@pytest.mark.parametrize("preset", RECIPES)
def test_the_presets_are_the_published_recipes(preset):
    config = load_config(preset, None, {})
    cam, contrast, optimizer = config.cam, config.contrast, config.optimizer
    found = (config.model.backbone, config.steps, config.batch_size, (cam.low, cam.background, cam.high),
             contrast.temperature)  # fmt: skip
    assert found == RECIPES[preset]
    assert (config.model.pretrained, config.model.freeze_position_embedding, config.model.aux_block) == (True, True, -3)
    assert (config.model.mean, config.model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (config.model.decoder_channels, config.model.decoder_dilation) == (512, 5)
    assert (config.model.image_size, contrast.local_crop_size) == (448, 96)
    assert (optimizer.lr, optimizer.head_lr_factor, optimizer.weight_decay) == (6e-5, 10, 0.01)
    assert (optimizer.betas, optimizer.warmup_steps, optimizer.warmup_ratio) == ((0.9, 0.999), 1500, 1e-6)
    assert optimizer.power == 0.9
    assert cam.scales == (1.0, 0.5, 1.5)
    assert (contrast.momentum, contrast.num_local_crops, contrast.negative_ratio) == (0.9, 8, 0.2)
    assert config.weights.model_dump() == {"cls": 1, "aux_cls": 1, "ptc": 0.2, "ctc": 0.5, "seg": 0.1, "reg": 0.05}
    regularization = config.regularization
    assert (regularization.sigma_rgb, regularization.sigma_xy, regularization.scale) == (15, 100, 1e-7)
    augmentation = config.augmentation
    assert (augmentation.fit_to_crop, augmentation.rescale, augmentation.flip) == (False, (0.5, 2.0), 0.5)
    assert (augmentation.jitter, augmentation.jitter_probability) == ((0.4, 0.4, 0.2, 0.1), 0.8)
    assert (augmentation.blur_view1, augmentation.blur_view2, augmentation.blur_local) == (1.0, 0.1, 0.5)
    assert (augmentation.grey, augmentation.solarize_view2, augmentation.blur_sigma) == (0.2, 0.2, (0.1, 2.0))
    assert augmentation.second_view_area == (0.4, 1.0)


CONTRASTS, ALL, CLS_ONLY, SEGMENTATION = {"ptc", "ctc"}, {"ptc", "ctc", "seg", "reg"}, set(), {"seg", "reg"}


@pytest.mark.parametrize(
    ("data", "step", "losses", "pseudo_label"),
    [
        ("voc", 0, CONTRASTS, "cam"),
        ("voc", 1_999, CONTRASTS, "cam"),
        ("voc", 2_000, ALL, "cam"),
        ("voc", 19_999, ALL, "cam"),
        ("coco", 0, CLS_ONLY, "cam"),
        ("coco", 7_999, CLS_ONLY, "cam"),
        ("coco", 8_000, SEGMENTATION, "aux_cam"),
        ("coco", 11_999, SEGMENTATION, "aux_cam"),
        ("coco", 12_000, ALL, "cam"),
        ("coco", 79_999, ALL, "cam"),
    ],
)
@pytest.mark.parametrize("backbone", ["vit-b", "deit-b"])
def test_losses_join_at_the_published_steps(backbone, data, step, losses, pseudo_label):
    phase = load_config(f"{data}-{backbone}", None, {}).phase_at(step)
    assert {name for name in ALL if getattr(phase, name)} == losses
    assert phase.pseudo_label == pseudo_label


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


def test_no_mixed_precision_may_be_said_in_yaml_without_quotes(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("mixed_precision: no\n")
    assert load_config(None, file, {}).mixed_precision == "no"
    assert load_config(None, None, {"mixed_precision": False}).mixed_precision == "no"


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
