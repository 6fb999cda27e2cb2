"""Where a backbone's first weights come from: timm's hub, or a file of the user's."""

import pickle
import re

import httpx2
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from tests.train.conftest import TINY_VIT, tiny_config
from toco_core.config import dump_yaml
from toco_core.errors import ConfigError, RunError
from toco_train.config import ContrastConfig, ModelConfig, TrainConfig
from toco_train.models import vit as backbone
from toco_train.models.toco import ToCo
from toco_train.models.vit import build_backbone
from toco_train.runs.load import load_run

TI = "vit_tiny_patch16_224"


@pytest.fixture
def tiny_weights():
    """The state dict of a tiny timm ViT, with a classification head."""
    torch.manual_seed(5)
    vit = build_backbone(TINY_VIT, pretrained=False, aux_block=-3).vit
    state = {name: torch.randn_like(value) for name, value in vit.state_dict().items()}
    return state | {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}


def of_vit(model):
    return model.backbone.vit.state_dict()


def test_pretrained_weights_are_asked_of_timm_by_the_id_with_its_tag(monkeypatch):
    asked = []

    def create_model(name, **arguments):
        asked.append((name, arguments))
        return timm.models.create_model(name, **{**arguments, "pretrained": False})

    monkeypatch.setattr(backbone.timm, "create_model", create_model)
    monkeypatch.setattr(backbone, "get_hf_file_metadata", lambda url, timeout: None)
    ToCo(ModelConfig(backbone=f"{TI}.augreg_in21k", classes=("a",)))
    assert asked == [(f"{TI}.augreg_in21k", {"pretrained": True, "num_classes": 0})]


@pytest.mark.parametrize(
    "failure", [httpx2.ConnectError("[Errno -2] Name or service not known"), httpx2.ConnectTimeout("timed out")]
)
def test_without_a_network_the_hub_is_asked_once_and_one_sentence_names_the_ways_out(monkeypatch, failure):
    asked = []

    def unreachable(url, timeout):
        asked.append((url, timeout))
        raise failure

    monkeypatch.setattr(backbone, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(backbone, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(backbone.timm, "create_model", lambda *_, **__: pytest.fail("the download must not begin"))
    with pytest.raises(ConfigError) as caught:
        ToCo(ModelConfig(backbone=TI, classes=("a",)))
    assert str(caught.value) == (
        f"cannot get the pretrained weights of {TI!r} ({failure}): connect to the network once, give a file with "
        "--weights FILE, or start from random weights with --no-pretrained"
    )
    assert [timeout for _, timeout in asked] == [backbone.HUB_TIMEOUT_S]
    assert asked[0][0].endswith("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors")


def test_weights_in_the_cache_need_no_network(monkeypatch):
    monkeypatch.setattr(backbone, "try_to_load_from_cache", lambda repository, file: f"/cache/{repository}/{file}")
    monkeypatch.setattr(backbone, "get_hf_file_metadata", lambda *_, **__: pytest.fail("nothing must be asked"))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf",
                        lambda *_, **__: timm.models.create_model(TI).state_dict())  # fmt: skip
    ToCo(ModelConfig(backbone=TI, classes=("a",)))


def test_a_download_that_breaks_off_gives_the_same_sentence(monkeypatch):
    monkeypatch.setattr(backbone, "get_hf_file_metadata", lambda *_, **__: None)

    def broken(*_, **__):
        raise LocalEntryNotFoundError("the connection\nbroke off.")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", broken)
    with pytest.raises(ConfigError, match=re.escape("(the connection): connect to the network once, give a file with")):
        ToCo(ModelConfig(backbone=TI, classes=("a",)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vit_base_patch16_225", "has no model 'vit_base_patch16_225', did you mean 'vit_base_patch16_224'?"),
        ("vit_base_patch16_224.orig_in21k_ft_in2k", "did you mean 'vit_base_patch16_224.orig_in21k_ft_in1k'?"),
        ("deit_base_patch16_224.nonsense", "has no weights 'nonsense' of deit_base_patch16_224"),
        ("deit_base_patch16_224.nonsense", "; it has fb_in1k"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_an_id_that_timm_lacks_is_refused_with_the_nearest(name, sentence, pretrained):
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        ToCo(ModelConfig(backbone=name, pretrained=pretrained, classes=("a",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".pt"])
def test_weights_from_a_file_become_the_backbone_without_the_head(tmp_path, tiny_weights, suffix):
    file = tmp_path / f"weights{suffix}"
    save_file(tiny_weights, file) if suffix == ".safetensors" else torch.save(tiny_weights, file)
    vit = of_vit(ToCo(tiny_config(weights=str(file))))
    assert all(torch.equal(value, tiny_weights[name]) for name, value in vit.items())


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
                                  lambda s: {"model": s}])  # fmt: skip
def test_a_wrapped_state_dict_is_unwrapped(tmp_path, tiny_weights, wrap):
    torch.save(wrap(tiny_weights), tmp_path / "weights.pth")
    vit = of_vit(ToCo(tiny_config(weights=str(tmp_path / "weights.pth"))))
    assert torch.equal(vit["blocks.3.mlp.fc2.weight"], tiny_weights["blocks.3.mlp.fc2.weight"])


def test_a_file_beats_the_download(tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setattr(backbone, "get_hf_file_metadata", lambda *_, **__: pytest.fail("nothing must be asked"))
    torch.manual_seed(0)
    state = timm.create_model(TI, num_classes=0).state_dict()
    save_file(state, tmp_path / "ti.safetensors")
    model = ToCo(ModelConfig(backbone=TI, pretrained=True, weights=str(tmp_path / "ti.safetensors"), classes=("a",)))
    assert all(torch.equal(value, state[name]) for name, value in of_vit(model).items())


def test_a_position_embedding_of_another_grid_is_resized(tmp_path, tiny_weights):
    values = torch.arange(48).expand(8 * 8, 48)  # constant over the grid: resizing must keep it
    tiny_weights["pos_embed"] = torch.cat([torch.full((1, 48), -1.0), values])[None].float()
    save_file(tiny_weights, tmp_path / "w.safetensors")
    embedding = of_vit(ToCo(tiny_config(weights=str(tmp_path / "w.safetensors"))))["pos_embed"]
    assert embedding.shape == (1, 1 + 4 * 4, 48)
    assert torch.equal(embedding[0, 0], torch.full((48,), -1.0))
    assert torch.allclose(embedding[0, 1:], torch.arange(48.0).expand(16, 48), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("blocks.2.norm1.bias"), "1 missing (blocks.2.norm1.bias)"),
        (lambda w: w.update({"mystery": torch.zeros(1)}), "1 left over (mystery)"),
        (
            lambda w: w.update({"norm.weight": torch.zeros(7)}),
            "1 of another shape (norm.weight (7,), expected (48,))",
        ),
        (lambda w: w.update({f"x{i:02}": torch.zeros(1) for i in range(12)}), "x08, x09 and 2 more)"),
        (lambda w: w.update({"pos_embed": torch.zeros(3)}), "cannot be fitted to the backbone"),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, tiny_weights, change, sentence):
    change(tiny_weights)
    save_file(tiny_weights, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=re.escape(sentence)) as caught:
        ToCo(tiny_config(weights=str(tmp_path / "w.safetensors")))
    assert "\n" not in str(caught.value)


class Trap:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("trap.pth", pickle.dumps({"a": Trap()}), "cannot be read"),
        ("text.pth", b"not a checkpoint", "cannot be read"),
        ("text.safetensors", b"not a checkpoint", "cannot be read"),
        ("empty.pth", b"", "cannot be read"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_never_run(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=sentence) as caught:
        ToCo(tiny_config(weights=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_of_torch_is_named_and_never_run(tmp_path):
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(RunError, match="it is damaged or holds other things than tensors; nothing in it was run"):
        ToCo(tiny_config(weights=str(tmp_path / "trap.pth")))


def test_other_objects_and_missing_files_are_refused(tmp_path):
    torch.save({"a": 3}, tmp_path / "number.pth")
    with pytest.raises(RunError, match="are not a state dict \\('a' is int\\)"):
        ToCo(tiny_config(weights=str(tmp_path / "number.pth")))
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(RunError, match="it is empty"):
        ToCo(tiny_config(weights=str(tmp_path / "empty.pth")))
    with pytest.raises(RunError, match="do not exist; give a safetensors file"):
        ToCo(tiny_config(weights=str(tmp_path / "absent.pth")))


def test_a_finished_run_no_longer_needs_the_file(tmp_path, tiny_weights):
    file = tmp_path / "w.safetensors"
    save_file(tiny_weights, file)
    model = ToCo(tiny_config(weights=str(file)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = TrainConfig(model=model.config, contrast=ContrastConfig(local_crop_size=32))
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    file.unlink()
    assert torch.equal(of_vit(load_run(tmp_path))["norm.bias"], tiny_weights["norm.bias"])
