"""Over-smoothing and similarity maps, against tokens laid out by hand and the network's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from toco_core.charts import COLOURS, Curve, curve_chart, inline_svg, line_style, save_figure, themed
from toco_core.errors import ConfigError
from toco_train.analysis.figures import patch_figure, similarity_chart
from toco_train.analysis.saving import block_rows, patch_rows
from toco_train.analysis.token_similarity import (
    BlockSimilarity,
    PatchView,
    PlaceInImage,
    Subject,
    look_at,
    similarity_by_block,
    similarity_map,
    timm_subject,
    token_at,
)
from toco_train.data.source import Sample
from toco_train.inference.predict import predict
from toco_train.models.vit import Tokens

CPU = torch.device("cpu")


@pytest.fixture
def subject(tiny_model):
    config = tiny_model.config
    return Subject("tiny", tiny_model.backbone, config.image_size, config.mean, config.std, tiny_model, (1.0,))


@pytest.fixture
def samples(tmp_path):
    """Three images of noise, tagged 2 and 4, nothing, and 1."""
    noise = np.random.default_rng(0)
    found = []
    for name, labels in (("a", (2, 4)), ("b", ()), ("c", (1,))):
        Image.fromarray(noise.integers(0, 256, (50, 80, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        found.append(Sample(name=name, image=tmp_path / f"{name}.png", labels=labels))
    return found


def _blank():
    return Image.new("RGB", (40, 20))


def test_tokens_by_block_end_with_those_that_the_network_uses(tiny_model):
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    by_block = list(tiny_model.backbone.patch_tokens_by_block(images))
    with torch.no_grad():
        tokens = tiny_model.backbone(images)
    assert len(by_block) == 4 + 1
    assert torch.equal(by_block[-1], tokens.patch_tokens)
    assert torch.equal(by_block[tiny_model.backbone.aux_block], tokens.aux_tokens)
    assert by_block[0].shape == (2, 48, 2, 3)


def test_the_similarity_of_the_last_column_is_that_of_predictions_at_the_square(subject, samples):
    done = []
    found = similarity_by_block(subject, samples, 2, done.append)
    predictions = predict(subject.model, samples, (1.0,), 1, sizes=[(64, 64)])
    assert found.values.shape == (3, 5)
    assert found.values[:, -1] == pytest.approx([prediction.token_similarity for prediction in predictions], rel=1e-5)
    assert found.mean[-1] == pytest.approx(found.values[:, -1].mean())
    assert done == [2, 1]


def test_a_similarity_map_by_hand(subject, monkeypatch):
    tokens = torch.tensor([[[1.0, 1.0, 0.0], [-2.0, 0.0, 3.0]], [[0.0, 1.0, 5.0], [0.0, 1.0, 4.0]]])[None]
    monkeypatch.setattr(type(subject.backbone), "forward", lambda *_: Tokens(tokens[:, :, 0, 0], tokens, tokens))
    found = similarity_map(subject, _blank(), (0.1, 0.9))
    # the token of row 1, column 0 is (-2, 0): the sign does not count
    assert found.numpy() == pytest.approx(np.array([[1, 0.5**0.5, 0], [1, 0, 0.6]]), abs=1e-6)


def test_every_point_lies_in_a_token():
    assert token_at((0, 0), 3, 5) == (0, 0)
    assert token_at((0.39, 0.67), 3, 5) == (2, 1)
    assert token_at((1, 1), 3, 5) == (2, 4)


def test_the_place_that_is_not_chosen_is_where_the_cams_are_strongest(subject, samples):
    cam = next(predict(subject.model, samples[:1], (1.0,), 1, sizes=[(64, 64)])).cam.amax(dim=0)
    place = look_at([subject], samples[0], None)
    row, column = token_at(place.point, *cam.shape)
    assert cam[row, column] == cam.max()
    assert np.array_equal(place.views[0].cam, cam.numpy())
    assert place.views[0].similarity.shape == (4, 4)
    at = token_at(place.point, 4, 4)
    assert place.views[0].similarity[at] == pytest.approx(1)


def test_without_tags_or_class_head_there_is_no_cam_and_the_place_is_the_centre(subject, samples):
    plain = Subject("plain", subject.backbone, 32, subject.mean, subject.std)
    for subjects, sample in (([plain], samples[0]), ([subject], samples[1])):
        place = look_at(subjects, sample, None)
        assert place.point == (0.5, 0.5)
        assert place.views[0].cam is None
    both = look_at([plain, subject], samples[0], (0.25, 0.75))
    assert [view.cam is None for view in both.views] == [True, False]
    assert both.point == (0.25, 0.75)
    assert [view.similarity.shape for view in both.views] == [(2, 2), (4, 4)]


def test_a_plain_backbone_has_timms_normalisation_and_size():
    plain = timm_subject("vit_tiny_patch16_224", "x", CPU, pretrained=False, weights=None, image_size=None)
    assert (plain.image_size, plain.mean, plain.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not plain.backbone.training
    for size, hint in ((100, "give 96"), (0, "give 16"), (3, "give 16")):
        with pytest.raises(ConfigError, match=f"image size {size} px is not a multiple of the patch size 16 .*{hint}"):
            timm_subject("vit_tiny_patch16_224", "x", CPU, pretrained=False, weights=None, image_size=size)


def test_the_tables_hold_the_numbers_of_the_figures():
    curve = BlockSimilarity("a,b", np.array([[0.25, 0.5, 0.75], [0.75, 0.5, 0.25]]))
    rows = list(block_rows([curve]))
    assert rows[1:] == [
        ("a,b", 1, 0, "0.500000", "0.250000", 2),
        ("a,b", 2, 0, "0.500000", "0.000000", 2),
        ("a,b", 2, 1, "0.500000", "0.250000", 2),
    ]
    cam = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    view = PatchView("n", np.array([[1, 0.5]], dtype=np.float32), cam)
    place = PlaceInImage(Sample("i", None, ()), _blank(), (0.25, 0.5), (view, PatchView("p", view.similarity, None)))
    rows = list(patch_rows([place]))
    # tokens 1 x 2: centres at a quarter and three quarters of row 2 of 4, which hold 9 / 16 and 11 / 16
    assert rows[1] == ("n", "i", "0.2500", "0.5000", 0, 0, "1.000000", "0.562500")
    assert rows[2] == ("n", "i", "0.2500", "0.5000", 0, 1, "0.500000", "0.687500")
    assert [row[-1] for row in rows[3:]] == ["", ""]


def test_the_chart_shows_every_block_and_sets_the_final_norm_apart():
    curves = [BlockSimilarity("two", np.array([[0.2, 0.4, 0.6]])), BlockSimilarity("one", np.array([[0.3, 0.1]]))]
    axes = similarity_chart(curves).axes[0]
    drawn = [
        (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.get_lines() if len(line.get_xdata())
    ]
    drawn = [(list(x), y) for x, y in drawn]
    assert ([1, 2], [0.2, 0.4]) in drawn
    assert [line.get_markerfacecolor() for line in axes.get_lines()].count("none") == 2
    assert "norm" not in [tick.get_text() for tick in axes.get_xticklabels()], "it is at no common place"
    same = similarity_chart(curves[:1])
    assert [tick.get_text() for tick in same.axes[0].get_xticklabels()] == ["1", "2", "norm"]
    assert [text.get_text() for text in same.legends[0].get_texts()] == ["two", "open: after the final norm"]


def test_lines_differ_in_more_than_colour():
    styles = [line_style(index) for index in range(8)]
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles}) == 8
    assert len({style["marker"] for style in styles[: len(COLOURS)]}) == len(COLOURS)


def test_figures_are_written_twice_the_same(tmp_path):
    def draw(folder):
        view = PatchView("$a_b$", np.eye(2, dtype=np.float32), None)
        place = PlaceInImage(Sample("i", None, (1,)), _blank(), (0, 1), (view,))
        return save_figure(patch_figure([place], ["x$y$"]), folder / "figure")

    first, second = draw(tmp_path / "1"), draw(tmp_path / "2")
    assert [path.name for path in first] == ["figure.png", "figure.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with Image.open(first[0]) as image:
        assert min(image.size) > 200
    assert "<text" not in first[1].read_text(), "text is drawn as paths, so that it looks the same everywhere"


def test_a_chart_in_a_page_has_the_colours_of_the_page():
    with themed():
        curves = [Curve("a", [0, 1], [1, 2]), Curve("b<c", [0, 1], [2, 1])]
        figure = curve_chart(curves, x="step", y="loss", size=(4, 3), x_limits=(0, 1))
    svg = inline_svg(figure, "losses")
    assert svg.startswith("<svg")
    assert 'aria-label="losses"' in svg
    for variable in ("var(--ink)", "var(--soft)", "var(--line)"):
        assert variable in svg
    assert "b&lt;c" in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")
    assert "#010203" not in svg
