from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import Exported, save_perturbed

from toco_core.errors import ConfigError, DataError, ExportError
from toco_core.fitting import network_sizes
from toco_core.manifest import Parity, Precision, Shape
from toco_export.config import ExportConfig, resolve_profile
from toco_export.graph import ServedModel
from toco_export.parity import verification
from toco_export.parity.images import data_folder, load_images, sample_images
from toco_export.parity.verification import (
    MIN_AGREEMENT,
    Candidate,
    compare,
    verification_cases,
    verification_sizes,
    verify,
)
from toco_export.runtimes import Answer, _SummedInFloat, open_onnx, torch_segmenter
from toco_train.models.toco import ToCo


def save_image(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_sample_is_spread_over_all_folders_and_always_the_same(tmp_path: Path):
    files = [save_image(tmp_path / folder / f"{index}.JPG") for folder in "abcd" for index in range(10)]
    sample = sample_images(tmp_path, 4)
    assert sample == [files[0], files[13], files[26], files[39]]
    assert sample == sample_images(tmp_path, 4)
    assert sample_images(tmp_path, 100) == files
    assert sample_images(tmp_path, 1) == [files[0]]


def test_masks_that_lie_among_photographs_are_not_taken_for_images(tmp_path: Path):
    photograph = save_image(tmp_path / "JPEGImages" / "1.jpg")
    save_image(tmp_path / "SegmentationClass" / "1.png")
    lone = save_image(tmp_path / "other" / "2.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert sample_images(tmp_path, 16) == [photograph, lone]


def test_a_folder_without_images_is_an_error_in_one_sentence(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no image \(\.bmp, .*\); .* give a folder of them with --images$"):
        sample_images(tmp_path, 16)
    with pytest.raises(DataError, match=r"does not exist; give a folder of images with --images$"):
        sample_images(tmp_path / "nowhere", 16)


def test_a_broken_image_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read: it is text"):
        load_images([tmp_path / "broken.png"], [(8, 8)])


def test_a_run_that_names_no_data_asks_for_images(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    with pytest.raises(DataError, match=r"does not name the data set \(data\.path\); give a folder with --images"):
        data_folder(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        data_folder(tmp_path / "nowhere")


def test_images_become_rgb_of_the_nearest_size(tmp_path: Path):
    Image.new("L", (30, 20), 77).save(tmp_path / "grey.png")
    standing = save_image(tmp_path / "c.png", size=(10, 20))
    images = load_images([tmp_path / "grey.png", standing], [(16, 24), (24, 16)])
    assert [(image.shape, image.dtype) for image in images] == [((16, 24, 3), np.uint8), ((24, 16, 3), np.uint8)]
    assert images[0][0, 0].tolist() == [77, 77, 77]
    assert images[1][23, 15].tolist() == [10, 20, 30]


SIZES = network_sizes(448, 16)


def shapes(cases: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [case.shape[:3] for case in cases]


def test_photographs_are_compared_at_the_sizes_that_they_are_served_at(tmp_path: Path):
    lying = [save_image(tmp_path / f"a{index}.png", (index, 0, 0), (40, 30)) for index in range(9)]
    standing = [save_image(tmp_path / f"b{index}.png", (100 + index, 0, 0), (30, 40)) for index in range(4)]
    cases = verification_cases([*lying, *standing], SIZES, (448, 448), max_batch=8)
    assert shapes(cases) == [
        (1, 336, 448), (4, 336, 448), (1, 448, 336), (3, 448, 336), (1, 448, 448), (3, 448, 448)
    ]  # fmt: skip
    seen = [int(image[0, 0, 0]) for case in cases for image in case]
    assert sorted(seen) == [*range(9), *range(100, 104)], "each image is used once; the square borrows from the lying"


def test_square_images_make_three_sizes_with_two_batches_each_and_are_used_once(tmp_path: Path):
    files = [save_image(tmp_path / f"{index:02}.png", (index, 0, 0), (10, 10)) for index in range(16)]
    cases = verification_cases(files, SIZES, (448, 448), max_batch=8)
    assert shapes(cases) == [
        (1, 112, 448), (4, 112, 448), (1, 448, 112), (4, 448, 112), (1, 448, 448), (5, 448, 448)
    ]  # fmt: skip
    assert sorted(int(image[0, 0, 0]) for case in cases for image in case) == list(range(16))


def test_no_case_is_larger_than_the_largest_batch(tmp_path: Path):
    files = [save_image(tmp_path / f"{index:02}.png", size=(10, 10)) for index in range(16)]
    one, two = [(64, 64)], [(48, 64), (64, 64)]
    assert [len(case) for case in verification_cases(files, one, (64, 64), max_batch=4)] == [1, 4]
    assert [len(case) for case in verification_cases(files, two, (64, 64), max_batch=1)] == [1, 1]
    assert [len(case) for case in verification_cases(files[:1], two, (64, 64), max_batch=8)] == [1, 2, 1, 2]


def test_the_sizes_compared_are_the_tuned_one_the_most_frequent_and_the_smallest():
    counts = {(336, 448): 2, (304, 448): 5, (448, 336): 1}
    assert verification_sizes(counts, SIZES, (448, 448)) == [(304, 448), (336, 448), (448, 448)]
    assert verification_sizes({(448, 448): 3}, SIZES, (448, 448)) == [(112, 448), (448, 112), (448, 448)]
    assert verification_sizes({(448, 448): 3}, [(448, 448)], (448, 448)) == [(448, 448)]


@pytest.mark.parametrize(
    ("config", "smallest", "largest", "sizes"),
    [
        ({}, (64, 64), (896, 896), SIZES),
        ({"static": True}, (448, 448), (448, 448), ((448, 448),)),
        ({"min": Shape(batch=1, height=336, width=304)}, (336, 304), (896, 896),
         ((336, 448), (448, 304), (448, 336), (448, 448))),
        ({"max": Shape(batch=8, height=448, width=448)}, (64, 64), (448, 448), SIZES),
        ({"opt": Shape(batch=1, height=224, width=224)}, (64, 64), (448, 448), network_sizes(224, 16)),
        ({"opt": Shape(batch=1, height=272, width=432), "static": True}, (272, 432), (272, 432), ((272, 432),)),
        ({"opt": Shape(batch=1, height=112, width=448)}, (64, 64), (448, 896), SIZES),
    ],
)  # fmt: skip
def test_the_sizes_served_are_those_of_the_run_inside_the_profile(config, smallest, largest, sizes):
    profile, found = resolve_profile(ExportConfig(**config), 16, SIZES)
    assert (profile.min.height, profile.min.width) == smallest
    assert (profile.max.height, profile.max.width) == largest
    assert found == sizes
    assert (profile.opt.height, profile.opt.width) in found


def test_the_sizes_of_the_demo_are_all_served():
    sizes = network_sizes(96, 8)
    assert resolve_profile(ExportConfig(), 8, sizes)[1] == sizes


def answer_of(mask: np.ndarray, confidence: int = 200, logits: float = 1.0) -> Answer:
    labels = np.asarray(mask, dtype=np.uint8)
    values = np.full((len(labels), 4, 2, 2), logits, dtype=np.float32)
    return Answer(labels, np.full(labels.shape, confidence, dtype=np.uint8), values)


def halves(first: int = 0, second: int = 1, wrong: int = 0) -> np.ndarray:
    """Two images of 8x8 of one label each, ``wrong`` pixels of the first of the label 3."""
    mask = np.zeros((2, 8, 8), dtype=np.uint8)
    mask[0], mask[1] = first, second
    mask.reshape(-1)[:wrong] = 3
    return mask


def failures_of(got: Answer, expected: Answer, precision: Precision = "fp32") -> tuple[str, ...]:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    return verify(
        [expected], [Candidate("x", precision, MIN_AGREEMENT[precision], lambda: lambda _: got)], [images]
    ).failures


def test_agreement_iou_and_differences_are_worked_out_from_both_answers():
    expected, got = answer_of(halves(), 250, 4.0), answer_of(halves(wrong=32), 3, 3.5)
    assert compare("x.onnx", expected, got, latency_ms=7.0) == Parity(
        file="x.onnx",
        shape=Shape(batch=2, height=8, width=8),
        num_images=2,
        mask_agreement=0.75,
        mean_iou=(32 / 64 + 1 + 0) / 3,  # labels 0, 1 and 3
        num_labels=3,
        max_confidence_difference=247,
        max_logit_difference=0.5,
        mean_logit_difference=0.5,
        max_logit=4.0,
        latency_ms=7.0,
    )


@pytest.mark.parametrize(
    ("precision", "pixels_wrong", "passes"),
    [
        ("fp32", 4, True),
        ("fp32", 6, False),
        ("fp16", 30, True),
        ("fp16", 32, False),
        ("bf16", 200, True),
        ("bf16", 210, False),
    ],
)
def test_each_precision_has_its_own_limit_of_pixels(precision, pixels_wrong, passes):
    mask = np.zeros((1, 100, 100), dtype=np.uint8)
    mask[0, 50:] = 1
    other = mask.copy()
    other.reshape(-1)[:pixels_wrong] = 2
    images = np.zeros((1, 100, 100, 3), dtype=np.uint8)
    candidate = Candidate("x", precision, MIN_AGREEMENT[precision], lambda: lambda _: answer_of(other))
    failures = verify([answer_of(mask)], [candidate], [images]).failures
    assert (failures == ()) == passes
    if not passes:
        assert f"x at 100x100, batch 1, gives the label of PyTorch fp32 for {1 - pixels_wrong / 1e4:.3%}" in failures[0]


def test_nan_fails_even_where_every_label_is_right():
    [failure] = failures_of(answer_of(halves(), logits=np.nan), answer_of(halves()), "fp16")
    assert failure.startswith("x gives NaN or infinite logits; export without fp16")


def test_masks_of_one_label_fail_even_where_most_pixels_are_right():
    mask = np.zeros((2, 100, 100), dtype=np.uint8)
    mask[0, 0, :5] = 1
    got = answer_of(np.zeros_like(mask))
    images = np.zeros((2, 100, 100, 3), dtype=np.uint8)
    [failure] = verify(
        [answer_of(mask)], [Candidate("x", "fp16", MIN_AGREEMENT["fp16"], lambda: lambda _: got)], [images]
    ).failures
    assert failure.startswith("x gives every pixel of all images the label 0, which proves nothing")


def test_a_network_that_knows_one_label_cannot_be_verified():
    failures = failures_of(answer_of(halves(2, 2)), answer_of(halves(2, 2)))
    assert [failure.split(" gives every pixel")[0] for failure in failures] == ["PyTorch fp32", "x"]


def test_fp32_logits_must_be_within_a_ten_thousandth_of_the_largest():
    assert failures_of(answer_of(halves(), logits=1.00009), answer_of(halves())) == ()
    [failure] = failures_of(answer_of(halves(), logits=1.0002), answer_of(halves()))
    assert failure.startswith("x has logits 2.0e-04 of the largest magnitude away from PyTorch's")
    assert failures_of(answer_of(halves(), logits=1.0002), answer_of(halves()), "fp16") == ()


def test_the_image_that_differs_most_is_kept_to_be_shown():
    expected, got = answer_of(halves()), answer_of(halves(wrong=5))
    images = np.stack([np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 20, np.uint8)])
    worst = verify([expected], [Candidate("x", "fp16", MIN_AGREEMENT["fp16"], lambda: lambda _: got)], [images]).worst[
        "x"
    ]
    assert worst.image.max() == 10
    assert int((worst.expected != worst.got).sum()) == 5


def test_an_artefact_is_timed_at_one_image_and_a_stand_in_is_not():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    expected = answer_of(halves())
    one = Answer(*(part[:1] for part in expected))
    for is_artefact in (True, False):
        candidate = Candidate(
            "x", "fp32", MIN_AGREEMENT["fp32"], lambda: lambda batch: one if len(batch) == 1 else expected, is_artefact
        )
        single, pair = verify([one, expected], [candidate], [images[:1], images]).parities
        assert (single.latency_ms is not None, pair.latency_ms) == (is_artefact, None)


@pytest.mark.parametrize("batches", [(1, 2), (1,)])
def test_an_artefact_is_timed_once_its_size_has_run(monkeypatch: pytest.MonkeyPatch, batches: tuple[int, ...]):
    """A fake clock: what has not met a size before takes a second, and then a millisecond."""
    now = 0.0
    met: set[tuple[int, ...]] = set()
    monkeypatch.setattr(verification, "perf_counter", lambda: now)

    def segment(images: np.ndarray) -> Answer:
        nonlocal now
        now += 0.001 if images.shape[1:] in met else 1.0
        met.add(images.shape[1:])
        return Answer(*(part[: len(images)] for part in answer_of(halves())))

    cases = [np.zeros((batch, side, side, 3), dtype=np.uint8) for side in (8, 16) for batch in batches]
    expected = [Answer(*(part[: len(images)] for part in answer_of(halves()))) for images in cases]
    parities = verify(expected, [Candidate("x", "fp16", 0.997, lambda: segment)], cases).parities
    assert [parity.latency_ms for parity in parities if parity.num_images == 1] == pytest.approx([1.0, 1.0])


def test_an_onnx_file_with_other_weights_fails_and_the_right_one_passes(
    exported: Exported, model: ToCo, images: np.ndarray, tmp_path: Path
):
    right = exported.artefacts / "model.onnx"
    wrong = save_perturbed(right, tmp_path / "wrong.onnx")
    candidates = [
        Candidate(path.name, "fp32", MIN_AGREEMENT["fp32"], lambda path=path: open_onnx(path).segment)
        for path in (right, wrong)
    ]
    failures = verify([torch_segmenter(ServedModel(model))(images)], candidates, [images]).failures
    assert {failure.split()[0] for failure in failures} == {"wrong.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.onnx"], "opening leaves nothing behind"


def test_a_file_that_onnx_runtime_does_not_take_is_named(tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(b"not ONNX")
    with pytest.raises(ExportError, match=r"ONNX Runtime [\d.]+ does not run broken\.onnx: "):
        open_onnx(tmp_path / "broken.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_half_precision_is_summed_in_fp32_and_overflows_when_it_is_rounded():
    weights = torch.full((1, 4096), 1.0, dtype=torch.float16)
    ones = torch.ones((1, 4096), dtype=torch.float16)
    with torch.inference_mode(), _SummedInFloat():
        assert torch.nn.functional.linear(ones, weights).item() == 4096
        assert torch.nn.functional.linear(32 * ones, weights).isinf().all()
