"""``toco-predict``: segment images and folders of images with a running server."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from toco.command import EXIT_BAD_INPUT, CommandParser, print_error, run_command
from toco.errors import DataError, TocoError
from toco.files import write_atomic
from toco_serve.client import REQUESTS_IN_FLIGHT, Client
from toco_serve.connection import DEFAULT_URL
from toco_serve.failures import UnreachableError
from toco_serve.images import SUFFIXES

PROG = "toco-predict"
OVERLAY_QUALITY = 90


@dataclass(frozen=True)
class Prediction:
    """One image and the start of the names of what is written for it."""

    source: Path
    target: Path


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Segment everything that is named; a bad file does not stop the others, but gives status 2."""
    arguments = _parser().parse_args(argv)
    with Client(arguments.url, timeout_s=arguments.timeout) as client:
        predictions = plan(arguments.images, arguments.out)
        failures = predict_all(client, predictions)
    num_done = len(predictions) - len(failures)
    if num_done:
        summary = f"{num_done} of {len(predictions)} images segmented into {arguments.out}"
        Console().print(summary, highlight=False, soft_wrap=True)
    for message in failures:
        print_error(PROG, message)
    return EXIT_BAD_INPUT if failures else 0


def plan(images: Iterable[Path], out: Path) -> list[Prediction]:
    """Find the images, and a name for each: its stem, or its whole name where two stems are the same.

    A folder is searched to its bottom, and its subfolders appear in ``out`` too.

    Raises:
        DataError: A folder holds no image, or two images have one name.
    """
    sources = {source: out / parent for image in images for source, parent in _images_in(image, out)}
    stems = Counter(folder / source.stem for source, folder in sources.items())
    predictions = [
        Prediction(source, folder / (source.stem if stems[folder / source.stem] == 1 else source.name))
        for source, folder in sources.items()
    ]
    taken: dict[Path, Path] = {}
    for prediction in predictions:
        first = taken.setdefault(prediction.target, prediction.source)
        if first != prediction.source:
            raise DataError(f"{first} and {prediction.source} would be written to one file; use another --out for each")
    return predictions


def predict_all(client: Client, predictions: Sequence[Prediction]) -> list[str]:
    """Segment the images, several at a time; return a sentence for each that failed, in the order of the images.

    Raises:
        UnreachableError: The server went away.
    """
    failures: dict[Prediction, str] = {}
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool, bar as progress:
        task = progress.add_task("segmenting", total=len(predictions))
        running = {pool.submit(predict, client, prediction): prediction for prediction in predictions}
        try:
            for future in as_completed(running):
                try:
                    future.result()
                except UnreachableError:
                    raise
                except (TocoError, OSError) as error:
                    failures[running[future]] = str(error)
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [failures[prediction] for prediction in predictions if prediction in failures]


def predict(client: Client, prediction: Prediction) -> None:
    """Segment one image and write its mask and its overlay."""
    segmentation = client.segment(prediction.source)
    segmentation.save(prediction.target.with_name(prediction.target.name + ".mask.png"))
    buffer = io.BytesIO()
    segmentation.overlay(prediction.source).save(buffer, format="JPEG", quality=OVERLAY_QUALITY)
    write_atomic(prediction.target.with_name(prediction.target.name + ".overlay.jpg"), buffer.getvalue())


def _images_in(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give each image of a folder with its subfolder, but for what an earlier run wrote; a file stands for itself."""
    if not path.is_dir():
        yield path, Path()
        return
    found = [
        source
        for source in sorted(path.rglob("*"))
        if source.suffix.lower() in SUFFIXES and source.is_file() and out.resolve() not in source.resolve().parents
    ]
    if not found:
        raise DataError(f"folder {path} holds no image; expected files that end in {', '.join(sorted(SUFFIXES))}")
    for source in found:
        yield source, source.relative_to(path).parent


def _parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(PROG, "Segment images with a running server: a mask and an overlay for each.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, BMP or folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help="the server's gRPC address")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait for one answer")
    return parser
