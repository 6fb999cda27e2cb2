from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import Exported, save_perturbed

from toco.errors import ConfigError, DataError, ExportError
from toco.manifest import Parity, Shape
from toco_export.graph import ServedModel
from toco_export.images import data_folder, load_images, sample_images
from toco_export.parity import (
    Candidate,
    ParityError,
    Segmenter,
    measure_parity,
    onnx_segmenter,
    parity_cases,
    require_parity,
    torch_segmenter,
)
from toco_train.model import ToCo


def save_picture(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def candidate(path: Path) -> Candidate:
    return Candidate(path.name, "fp32", lambda: onnx_segmenter(path))


def test_a_sample_is_spread_over_all_folders_and_always_the_same(tmp_path: Path):
    files = [save_picture(tmp_path / folder / f"{index}.JPG") for folder in "abcd" for index in range(10)]
    sample = sample_images(tmp_path, 4)
    assert sample == [files[0], files[13], files[26], files[39]]
    assert sample == sample_images(tmp_path, 4)
    assert sample_images(tmp_path, 100) == files
    assert sample_images(tmp_path, 1) == [files[0]]


def test_masks_that_lie_among_photographs_are_not_taken_for_images(tmp_path: Path):
    photograph = save_picture(tmp_path / "JPEGImages" / "1.jpg")
    save_picture(tmp_path / "SegmentationClass" / "1.png")
    lone = save_picture(tmp_path / "other" / "2.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert sample_images(tmp_path, 16) == [photograph, lone]


def test_a_folder_without_images_is_an_error_in_one_sentence(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no image \(\.bmp, .*\); .* give a folder of them with --images$"):
        sample_images(tmp_path, 16)
    with pytest.raises(DataError, match=r"does not exist; give a folder of images with --images$"):
        sample_images(tmp_path / "nowhere", 16)


def test_a_broken_image_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        load_images([tmp_path / "broken.png"], 8, 8)


def test_a_run_that_names_no_data_asks_for_images(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    with pytest.raises(DataError, match=r"does not name the data set \(data\.path\); give a folder with --images"):
        data_folder(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        data_folder(tmp_path / "nowhere")


def test_images_become_rgb_of_the_size_asked_for(tmp_path: Path):
    Image.new("L", (30, 20), 77).save(tmp_path / "grey.png")
    images = load_images([tmp_path / "grey.png", save_picture(tmp_path / "c.png")], 16, 24)
    assert (images.shape, images.dtype) == ((2, 16, 24, 3), np.uint8)
    assert images[0, 0, 0].tolist() == [77, 77, 77]
    assert images[1, 15, 23].tolist() == [10, 20, 30]


def test_sixteen_images_make_three_sizes_with_two_batches_each_and_are_used_once(tmp_path: Path):
    files = [save_picture(tmp_path / f"{index:02}.png", (index, 0, 0)) for index in range(16)]
    cases = parity_cases(files, 448, 16)
    assert [case.shape[:3] for case in cases] == [
        (1, 224, 224), (6, 224, 224), (1, 224, 256), (5, 224, 256), (1, 448, 448), (2, 448, 448)
    ]  # fmt: skip
    assert sorted(image[0, 0, 0] for case in cases for image in case) == list(range(16))


@pytest.mark.parametrize(("image_size", "patch"), [(448, 16), (64, 8), (96, 16), (16, 16), (24, 8)])
def test_one_image_is_enough_for_three_sizes_one_not_square(tmp_path: Path, image_size: int, patch: int):
    cases = parity_cases([save_picture(tmp_path / "1.png")], image_size, patch)
    sizes = {case.shape[1:3] for case in cases}
    assert len(sizes) == 3
    assert any(height != width for height, width in sizes)
    assert all(height % patch == width % patch == 0 for height, width in sizes)
    assert {len(case) for case in cases} == {1, 2}


def test_agreement_is_the_share_of_equal_pixels_and_the_largest_difference_of_confidence():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)

    def answer(labels: int, confidence: int) -> Segmenter:
        mask = np.zeros((2, 8, 8), dtype=np.uint8)
        mask.reshape(-1)[:labels] = 1
        return lambda _: (mask, np.full((2, 8, 8), confidence, dtype=np.uint8))

    [parity] = measure_parity(answer(0, 250), [Candidate("x.onnx", "fp32", lambda: answer(32, 3))], [images])
    assert parity == Parity(
        file="x.onnx",
        shape=Shape(batch=2, height=8, width=8),
        num_images=2,
        mask_agreement=0.75,
        max_confidence_difference=247,
    )


@pytest.mark.parametrize(
    ("precision", "agreement", "passes"),
    [("fp32", 0.999, True), ("fp32", 0.9989, False), ("fp16", 0.995, True), ("fp16", 0.9949, False)],
)
def test_fp32_must_agree_on_999_pixels_of_1000_and_fp16_on_995(precision, agreement, passes):
    shape = Shape(batch=4, height=64, width=72)
    parity = Parity(file="x", shape=shape, num_images=4, mask_agreement=agreement, max_confidence_difference=0)
    candidates = [Candidate("x", precision, lambda: pytest.fail("nothing is run to judge figures"))]
    if passes:
        require_parity([parity], candidates)
    else:
        with pytest.raises(
            ParityError, match=f"^x at 64x72, batch 4, gives .* for {agreement:.2%} of the pixels, expected"
        ):
            require_parity([parity], candidates)


def test_an_onnx_file_with_other_weights_fails_and_the_right_one_passes(
    exported: Exported, model: ToCo, images: np.ndarray, tmp_path: Path
):
    right = exported.artefacts / "model.onnx"
    wrong = save_perturbed(right, tmp_path / "wrong.onnx")
    candidates = [candidate(right), candidate(wrong)]
    parities = measure_parity(torch_segmenter(ServedModel(model)), candidates, [images])
    require_parity(parities[:1], candidates)
    with pytest.raises(ParityError, match=r"^wrong\.onnx at 64x64, batch 6, .* \(1 of 2 comparisons fail\)"):
        require_parity(parities, candidates)


def test_a_file_that_onnx_runtime_does_not_take_is_named(tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(b"not ONNX")
    with pytest.raises(ExportError, match=r"ONNX Runtime [\d.]+ does not run broken\.onnx: "):
        onnx_segmenter(tmp_path / "broken.onnx")
