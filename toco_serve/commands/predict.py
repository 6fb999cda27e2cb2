"""``toco-predict``: segment images, folders and patterns of images with a running server."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from toco_core.cli import CommandParser, print_error, progress_bars, run_command
from toco_core.errors import ConfigError, DataError, TocoError
from toco_core.files import make_output_folder, write_atomic
from toco_serve.client.answer_formats import OUTPUTS
from toco_serve.client.client import DEFAULT_TIMEOUT_S, REQUESTS_IN_FLIGHT, Client
from toco_serve.client.connection import DEFAULT_URL, Tls
from toco_serve.client.images import encoded
from toco_serve.client.segmentation import Segmentation
from toco_serve.commands.image_files import Prediction, plan
from toco_serve.errors import UnreachableError

PROG = "toco-predict"
EXIT_NOT_ALL = 1
SUMMARY_FILE = "predictions.json"
OVERLAY_QUALITY = 90

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Outputs:
    """What is written for each image beside its entry in the summary.

    Attributes:
        masks: A palette PNG of the labels.
        overlays: A JPEG of the image under the labels' colours.
        rle: COCO run lengths of each class, in the summary.
    """

    masks: bool = True
    overlays: bool = True
    rle: bool = False


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Segment all given images; one that fails does not stop the others, but gives status 1."""
    arguments = _parser().parse_args(argv)
    outputs = Outputs(not arguments.no_masks, not arguments.no_overlays, arguments.rle)
    with Client(
        arguments.url,
        timeout_s=arguments.timeout,
        tls=_tls(arguments),
        answer_format=arguments.answer_format,
    ) as client:
        predictions = plan(arguments.images, arguments.out)
        make_output_folder(arguments.out)
        entries, failures = predict_all(client, predictions, outputs, in_flight=arguments.in_flight)
        summary = {"classes": client.classes, "images": entries, "failed": failures}
    write_atomic(arguments.out / SUMMARY_FILE, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    text = f"{len(entries)} of {len(predictions)} images segmented into {arguments.out}"
    Console().print(text, highlight=False, soft_wrap=True)
    for failure in failures:
        print_error(PROG, failure["error"])
    return EXIT_NOT_ALL if len(entries) < len(predictions) else 0


def predict_all(
    client: Client, predictions: Sequence[Prediction], outputs: Outputs, *, in_flight: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Segment the images, several at a time, and write what is asked for. Each file is read once.

    Returns:
        An entry for each image that was segmented, and one with an error for each that was not, both in the images'
        order. If the server goes away, the images after that one are in neither.
    """
    entries: list[dict[str, Any]] = []
    failures: dict[Prediction, str] = {}
    asked: deque[tuple[Prediction, bytes]] = deque()

    def contents() -> Iterator[bytes]:
        for prediction in predictions:
            try:
                content = encoded(prediction.source)
            except DataError as error:
                failures[prediction] = str(error)
            else:
                asked.append((prediction, content))
                yield content

    with progress_bars(Console(stderr=True), transient=True) as progress:
        task = progress.add_task("segmenting", total=len(predictions))
        try:
            for outcome in client.segment_many(contents(), in_flight=in_flight):
                prediction, content = asked.popleft()
                try:
                    if outcome.segmentation is None:
                        raise outcome.error or AssertionError
                    entries.append(write(prediction, content, outcome.segmentation, outputs))
                except TocoError as error:
                    failures[prediction] = _naming(prediction, error)
                progress.update(task, completed=len(entries) + len(failures))
        except UnreachableError as error:
            failures[asked[0][0]] = str(error)
    return entries, [{"image": str(p.source), "error": failures[p]} for p in predictions if p in failures]


def _naming(prediction: Prediction, error: TocoError) -> str:
    """Return an error's sentence; if it is about the image, with the file's name."""
    named = not isinstance(error, DataError) or str(prediction.source) in str(error)
    return str(error) if named else f"{prediction.source}: {error}"


def write(prediction: Prediction, content: bytes, segmentation: Segmentation, outputs: Outputs) -> dict[str, Any]:
    """Write mask and overlay of one image and return its entry in the summary.

    Raises:
        DataError: The image cannot be decoded.
        ConfigError: A file cannot be written.
    """
    height, width = segmentation.mask.shape
    entry: dict[str, Any] = {"image": str(prediction.source), "height": height, "width": width}
    entry["class_shares"] = segmentation.class_shares()
    try:
        if outputs.masks:
            entry["mask"] = str(prediction.output(".mask.png"))
            segmentation.save(entry["mask"])
        if outputs.overlays:
            entry["overlay"] = str(prediction.output(".overlay.jpg"))
            buffer = io.BytesIO()
            segmentation.overlay(content).save(buffer, format="JPEG", quality=OVERLAY_QUALITY)
            write_atomic(Path(entry["overlay"]), buffer.getvalue())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{prediction.source}: cannot write {prediction.target} ({reason}); make room or give another --out"
        ) from error
    if outputs.rle:
        entry["rle"] = segmentation.rles()
    return entry


def _tls(arguments: argparse.Namespace) -> Tls | None:
    """Return the files of an encrypted connection, if one is asked for."""
    files = (arguments.root_certificates, arguments.private_key, arguments.certificate)
    return Tls(*files) if arguments.tls or any(files) else None


def _positive(kind: type[N]) -> Callable[[str], N]:
    """Return a reader of numbers above zero."""
    meaning = "a whole number above zero" if kind is int else "a number above zero"

    def read(text: str) -> N:
        with contextlib.suppress(ValueError):
            number = kind(text)
            if 0 < number < math.inf:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")

    return read


def _parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(PROG, f"Segment images with a running server: masks, overlays and {SUMMARY_FILE}.")
    kinds = "image, folder (without PNG masks beside their images), or pattern in quotes ('photos/**/*.jpg')"
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help=kinds)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--no-masks", action="store_true", help="write no masks (palette PNG)")
    parser.add_argument("--no-overlays", action="store_true", help="write no overlays (JPEG)")
    parser.add_argument("--rle", action="store_true", help=f"write masks as COCO run lengths into {SUMMARY_FILE}")
    parser.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help="the server's gRPC address")
    seconds = "longest wait for one answer, in seconds"
    parser.add_argument("--timeout", type=_positive(float), default=DEFAULT_TIMEOUT_S, metavar="S", help=seconds)
    in_flight = "number of requests to keep in flight"
    parser.add_argument("--in-flight", type=_positive(int), default=REQUESTS_IN_FLIGHT, metavar="N", help=in_flight)
    form = "encoding of the answers; png and rle are for slow networks"
    parser.add_argument("--answer-format", choices=OUTPUTS, default="raw", help=form)
    parser.add_argument("--tls", action="store_true", help="encrypt the connection; the files below imply it")
    for name, meaning in (
        ("root-certificates", "certificate that signed the server's (default: those that the system trusts)"),
        ("private-key", "this client's key, for a server that asks for one (mTLS)"),
        ("certificate", "this client's certificate"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="PEM", help=meaning)
    return parser
