"""What reading and augmenting an image costs: ours beside plain Pillow with torchvision's v1 transforms.

    python -m benchmarks.data_loading [--crop 448] [--rounds 20] [--report FOLDER/NAME]

Needs no data: it writes images of the size and weight of VOC's (500 x 375 px, about 100 KB of JPEG) to a temporary
folder. Each variant reads batches of 4 through the training loader, in one process with one thread, as a worker does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as v1
from torchvision.transforms import functional, v2
from torchvision.transforms.v2 import functional as TF

import toco_train.data.augmentation
import toco_train.data.loader
from benchmarks.harness.images import SIZE, write_images
from benchmarks.harness.phase_clock import PhaseClock
from benchmarks.harness.processes import Found, add_processes_argument, in_processes, in_words
from benchmarks.harness.provenance import provenance, provenance_text, save_report
from benchmarks.harness.timing import SPREAD, interleaved, ratio_cell, spread_cell
from toco_core.cli import run_command
from toco_core.text import markdown_table
from toco_train.config import AugmentationConfig
from toco_train.data.augmentation import Augmentation, Views, _blurred
from toco_train.data.loader import training_batches
from toco_train.data.source import DataSource

BATCH_SIZE = 4
WARMUP = 2
CPU = torch.device("cpu")
STAGES = {
    "decode": ("read_image",),
    "rescale, flip, pad, crop": ("_part_of_resized", "resize", "hflip", "horizontal_flip", "pad", "crop"),
    "crop of view 2": ("resized_crop",),
    "brightness": ("adjust_brightness",),
    "contrast": ("adjust_contrast",),
    "saturation": ("adjust_saturation",),
    "hue": ("adjust_hue",),
    "grey": ("rgb_to_grayscale",),
    "blur": ("gaussian_blur", "_blurred", "filter"),
    "solarise": ("solarize",),
    "to tensors": ("pil_to_tensor",),
    "batch": ("_collate",),
}
METHOD = """\
CPU seconds of one thread (what else the machine does falls out, but for its caches), batch by batch in turn, in
{processes}: {rounds} batches of {batch} images each in a process, after {warmup} for warming up; the same images in the
same order for all. Images a second per worker: the batch's images by that median. v1: Pillow images, torchvision's v1
transforms, a rescale of the whole image before the crop; its Gaussian blur is a 13 x 13 convolution on a tensor, in
the second row Pillow's own. v2 on tensors: the same order of work on uint8 tensors. Ours: toco_train.data.augmentation.
Stages: {rounds} more batches with every call timed, mean milliseconds an image; the views are drawn at random, so a
stage that is skipped now and then costs more when it runs. Last table: one call on an image of the crop's size."""


@dataclass(frozen=True)
class Plain:
    """The views of ``Augmentation`` as they are usually written, from the parts of a library.

    Attributes:
        config: What is drawn.
        crop_size: Side of the views in pixels.
        library: torchvision's v1 or v2 transforms.
        blur: The library's own Gaussian blur, or Pillow's.
        tensors: Work on tensors from the beginning, not on Pillow's images.
    """

    config: AugmentationConfig
    crop_size: int
    library: ModuleType = v1
    pillow_blur: bool = False
    tensors: bool = False

    def __call__(self, image: Image.Image) -> Views:
        """Return the views of an RGB image."""
        config, size, library = self.config, self.crop_size, self.library
        source = functional.pil_to_tensor(image) if self.tensors else image
        crop, box = self._random_crop(source, *image.size)
        second = library.RandomResizedCrop(size, scale=config.second_view_area)(source)
        second = self._render(library.RandomHorizontalFlip(config.flip)(second), config.blur_view2)
        second = library.RandomSolarize(128, config.solarize_view2)(second)
        views = (self._render(crop, config.blur_view1), second, self._render(crop, config.blur_local))
        view1, view2, local = views if self.tensors else map(functional.pil_to_tensor, views)
        return Views(view1, view2, local, torch.tensor(box))

    def _random_crop(self, image: Any, width: int, height: int) -> tuple[Any, tuple[int, int, int, int]]:
        size, draw = self.crop_size, self._functional
        factor = float(torch.empty(()).uniform_(*self.config.rescale))
        width, height = round(width * factor), round(height * factor)
        image = draw.resize(image, [height, width], antialias=True)
        if torch.rand(()) < self.config.flip:
            image = draw.hflip(image)
        room_x, room_y = max(0, size - width), max(0, size - height)
        x, y = (int(torch.randint(room + 1, ())) for room in (room_x, room_y))
        image = draw.pad(image, [x, y, room_x - x, room_y - y])
        left, top = (int(torch.randint(max(1, side - size + 1), ())) for side in (width, height))
        box = (y, min(size, y + height), x, min(size, x + width))
        return draw.crop(image, top, left, size, size), box

    def _render(self, image: Any, blur: float) -> Any:
        config, library = self.config, self.library
        jitter = library.ColorJitter(*config.jitter)
        image = library.RandomApply([jitter], p=config.jitter_probability)(image)
        image = library.RandomGrayscale(config.grey)(image)
        if torch.rand(()) >= blur:
            return image
        if self.pillow_blur:
            return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(*config.blur_sigma))))
        return library.GaussianBlur(13, config.blur_sigma)(image)

    @property
    def _functional(self) -> ModuleType:
        found: ModuleType = self.library.functional
        return found


def variants(crop_size: int) -> dict[str, Callable[[Image.Image], Views]]:
    """Return the ways to draw the views, by the name of their row."""
    config = AugmentationConfig()
    return {
        "v1": Plain(config, crop_size),
        "v1, Pillow's blur": Plain(config, crop_size, pillow_blur=True),
        "v2 on tensors": Plain(config, crop_size, library=v2, tensors=True),
        "ours": Augmentation(config, crop_size),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Time the variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=448, help="side of the views in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="timed batches of each variant in a process")
    parser.add_argument("--images", type=int, default=16, help="images to write")
    add_processes_argument(parser)
    parser.add_argument("--report", type=Path, help="write the tables there, as .json and .md")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in a worker
    origin = provenance(CPU, "benchmarks.data_loading", argv)  # first: the load average is that before our own
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder), arguments.images)
        result = measure(source, arguments.crop, arguments.rounds, arguments.processes)
    result["provenance"] = origin
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def measure(source: DataSource, crop_size: int, rounds: int, processes: int) -> dict[str, Any]:
    """Time whole batches against each other, then in this process their stages and single calls."""
    *_, seconds = in_processes(processes, batch_seconds, source, crop_size, rounds)
    file_size = np.mean([sample.image.stat().st_size for sample in source.train])
    return {
        "setting": {"crop": crop_size, "batch": BATCH_SIZE, "rounds": rounds, "processes": processes,
                    "image": f"{SIZE[0]} x {SIZE[1]} px, {file_size / 1000:.0f} KB"},
        "variants": {
            name: {"time_s": times.as_json(), "speed": seconds["v1"].over(times).as_json(),
                   "images_per_second": BATCH_SIZE / times.median, "seconds": times.values}
            for name, times in seconds.items()
        },
        "stages_ms_per_image": stage_times(source, crop_size, rounds),
        "calls_ms": single_calls(source, crop_size),
    }  # fmt: skip


def batch_seconds(source: DataSource, crop_size: int, rounds: int) -> Iterator[Found]:
    """Time whole batches against each other in this process; give the CPU seconds of each variant, once."""
    torch.set_num_threads(1)
    calls = batches_of(source, crop_size)
    interleaved(calls, CPU, WARMUP)
    yield interleaved(calls, CPU, rounds, time.thread_time)


def batches_of(source: DataSource, crop_size: int) -> dict[str, Callable[[], object]]:
    """Return for each variant a call that makes its next batch."""
    streams = {
        name: training_batches(source, augmentation, batch_size=BATCH_SIZE, num_workers=0, seed=0)  # type: ignore[arg-type]
        for name, augmentation in variants(crop_size).items()
    }
    return {name: partial(next, stream) for name, stream in streams.items()}


def stage_times(source: DataSource, crop_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the mean milliseconds that each stage takes per image, by variant, with what is left as ``rest``."""
    clock = PhaseClock(CPU, time.thread_time)
    found: dict[str, dict[str, float]] = {}
    with stages_timed(clock):
        calls = batches_of(source, crop_size)
        interleaved(calls, CPU, WARMUP)
        for _ in range(rounds):
            for name, call in calls.items():
                clock.seconds.clear()
                began = time.thread_time()
                call()
                clock.seconds["rest"] = time.thread_time() - began - sum(clock.seconds.values())
                sums = found.setdefault(name, dict.fromkeys((*STAGES, "rest"), 0.0))
                for stage, seconds in clock.seconds.items():
                    sums[stage] += 1000 * seconds / rounds / BATCH_SIZE
    return found


@contextmanager
def stages_timed(clock: PhaseClock) -> Iterator[None]:
    """Count every call that belongs to a stage to it; the augmentation itself knows nothing of measurements."""
    stage_of = {name: stage for stage, names in STAGES.items() for name in names}
    call_kernel = v2.Transform._call_kernel  # where every v2 transform passes, with the function that it is about

    def timed_kernel(self: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with clock.phase(stage_of[function.__name__]):
            return call_kernel(self, function, *args, **kwargs)

    parts = [
        *((functional, name) for name in stage_of if hasattr(functional, name)),
        *((TF, name) for name in ("resize", "pad", "crop", "pil_to_tensor")),
        *((toco_train.data.augmentation, name) for name in ("_part_of_resized", "_blurred")),
        *((toco_train.data.loader, name) for name in ("read_image", "_collate")),
        (Image.Image, "filter"),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.object(v2.Transform, "_call_kernel", timed_kernel))
        for owner, name in parts:
            stack.enter_context(patch.object(owner, name, clock.timed(stage_of[name], getattr(owner, name))))
        yield


def single_calls(source: DataSource, crop_size: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of one call of the dear functions, on an image and on a uint8 tensor."""
    with Image.open(source.train[0].image) as opened:
        pil_image = opened.resize((crop_size, crop_size))
    tensor = TF.pil_to_tensor(pil_image).contiguous()
    functions: dict[str, Callable[[Any], object]] = {
        "brightness": partial(TF.adjust_brightness, brightness_factor=1.2),
        "contrast": partial(TF.adjust_contrast, contrast_factor=1.2),
        "saturation": partial(TF.adjust_saturation, saturation_factor=1.2),
        "hue": partial(TF.adjust_hue, hue_factor=0.05),
        "blur, 13 x 13": partial(TF.gaussian_blur, kernel_size=[13, 13], sigma=[1.0, 1.0]),
    }
    calls: dict[tuple[str, str], Callable[[], object]] = {
        (name, kind): partial(function, image)
        for name, function in functions.items()
        for kind, image in (("image", pil_image), ("tensor", tensor))
    }
    calls["blur, Pillow's own", "image"] = partial(pil_image.filter, ImageFilter.GaussianBlur(1.0))
    calls["blur, ours", "tensor"] = partial(_blurred, TF.pil_to_tensor(pil_image), 1.0)
    seconds = interleaved({"/".join(key): call for key, call in calls.items()}, CPU, 15, time.thread_time)
    found: dict[str, dict[str, float]] = {}
    for name, kind in calls:
        found.setdefault(name, {})[kind] = 1000 * seconds[f"{name}/{kind}"].median
    return found


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables, with what they were measured on and how."""
    setting, found, stages = result["setting"], result["variants"], result["stages_ms_per_image"]
    rows = [
        [
            name,
            f"{row['images_per_second']:.1f}",
            f"{1000 * row['time_s']['median'] / BATCH_SIZE:.1f}",
            spread_cell(row["time_s"]),
            ratio_cell(row["speed"]),
        ]
        for name, row in found.items()
    ]
    headings = ("variant", "images/s per worker", "ms an image", "spread", "speed against v1")
    stage_rows = [[stage, *(f"{times[stage]:.1f}" for times in stages.values())] for stage in (*STAGES, "rest")]
    stage_rows.append(["all", *(f"{sum(times.values()):.1f}" for times in stages.values())])
    call_rows = [
        [name, *(f"{times[kind]:.1f}" if kind in times else "" for kind in ("image", "tensor"))]
        for name, times in result["calls_ms"].items()
    ]
    return "\n\n".join(
        [
            f"# Loading: {setting['image']} JPEG to three views of {setting['crop']} px",
            provenance_text(result["provenance"]),
            markdown_table(headings, rows),
            markdown_table(("stage, ms an image", *stages), stage_rows),
            markdown_table((f"one call at {setting['crop']} px, ms", "Pillow image", "uint8 tensor"), call_rows),
            METHOD.format(**{**setting, "processes": in_words(setting["processes"])}, warmup=WARMUP),
            SPREAD,
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command("data_loading")(main)(None))
