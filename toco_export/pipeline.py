"""From a run folder to a model repository: load, trace, half, build, verify, place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.console import Console

from toco.config import FrozenModel
from toco.errors import ExportError
from toco.manifest import MANIFEST_FILE, Artefact, Manifest, Parity, Precision
from toco.palette import IGNORE_INDEX
from toco_export.description import default_profile, describe_artefact, describe_backbone, describe_export
from toco_export.engine import LIBRARIES, EngineLibraryError, EngineReport, Target, build_engine
from toco_export.graph import ServedModel
from toco_export.half import half_served_model
from toco_export.images import data_folder, sample_images
from toco_export.onnx_export import export_onnx, product_precision
from toco_export.parity import (
    Candidate,
    measure_parity,
    onnx_segmenter,
    parity_cases,
    parity_table,
    require_parity,
    torch_segmenter,
)
from toco_export.repository import write_repository
from toco_export.stages import Stage, Stages
from toco_train.model import ToCo, load_run

ONNX_FILE = "model.onnx"
HALF_ONNX_FILE = "model.fp16.onnx"
TORCH_HALF = "torch-fp16"


class ExportConfig(FrozenModel):
    """What to export, and what to check it with."""

    fp16: bool = Field(False, description="Add an fp16 ONNX file and an engine made of it.")
    target: Target = Field("tensorrt-rtx", description="Which library builds the engine.")
    images: Path | None = Field(None, description="Folder of real images to check with; default: the run's data set.")
    num_images: int = Field(16, gt=0, description="Images taken from it.")


def export_run(run: Path, repository: Path, config: ExportConfig, console: Console) -> Manifest:
    """Export a run into a model repository, whole or not at all.

    Args:
        run: A run folder of ``toco-train``.
        repository: Where the model repository goes. One that stands there is replaced at the very end.
        config: What to export.
        console: Where the stages and the figures are shown.

    Returns:
        The manifest of the new repository.

    Raises:
        EngineLibraryError: No engine could be built; the repository is in its place with the ONNX files alone.
        ParityError: An artefact disagrees with PyTorch; nothing was placed.
        TocoError: Another stage failed; nothing was placed.
    """
    stages = Stages(console)
    with stages.stage("load", f"reading {run}") as stage:
        model = load_run(run)
        _check_exportable(model, repository)
        files = sample_images(config.images or data_folder(run), config.num_images)
        stage.outcome = f"{describe_backbone(model.config)}; {len(model.config.classes)} classes; {len(files)} images"
    repository.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{repository.name}.export.", dir=repository.parent) as workspace:
        export = Export(model, Path(workspace), stages)
        export.trace()
        if config.fp16:
            export.half()
            export.build(config.target)
        parities = export.verify(files, console)
        return export.place(repository, parities)


class Export:
    """An export under way: each method is a stage, in the order of the methods, and leaves what later ones need.

    Args:
        model: The trained network.
        workspace: Folder for the artefacts until they are placed.
        stages: Shows and times the stages, and names the one that fails.
    """

    def __init__(self, model: ToCo, workspace: Path, stages: Stages) -> None:
        self._model = model
        self._workspace = workspace
        self._stages = stages
        self._profile = default_profile(model.config.image_size, model.patch_size)
        self._served = ServedModel(model).eval()
        self._artefacts: list[Artefact] = []
        self._candidates: list[Candidate] = []
        self._engine: EngineReport | None = None
        self._missing_library: EngineLibraryError | None = None

    def trace(self) -> None:
        """Write the network as fp32 ONNX."""
        with self._stages.stage("trace", "writing the network as ONNX") as stage:
            self._add_onnx(stage, self._served, ONNX_FILE, "fp32")

    def half(self) -> None:
        """Write the network as fp16 ONNX."""
        with self._stages.stage("half", "writing the fp16 network as ONNX") as stage:
            half = half_served_model(self._model).eval()
            self._add_onnx(stage, half, HALF_ONNX_FILE, "fp16")
            self._candidates.append(Candidate(TORCH_HALF, "fp16", lambda: torch_segmenter(half)))

    def build(self, target: Target) -> None:
        """Build an engine from the fp16 ONNX file; a missing library is remembered, the ONNX files are worth having."""
        source, path = self._workspace / HALF_ONNX_FILE, self._workspace / LIBRARIES[target].file
        with self._stages.stage("build", "building the engine") as stage:
            try:
                engine = build_engine(source, path, self._profile, target=target, progress=stage.progress)
            except EngineLibraryError as error:
                self._missing_library = error
                stage.outcome = "no engine: its library is missing"
                return
            if engine.precision != "fp16":
                raise ExportError(
                    f"the engine came out in {engine.precision}, expected fp16: {engine.module} {engine.version} did "
                    "not keep the types of the network; install another version of it, or export without --fp16"
                )
            self._engine = engine
            self._add(stage, describe_artefact(path, target, engine.precision))

    def verify(self, files: Sequence[Path], console: Console) -> list[Parity]:
        """Compare what was made with the network in PyTorch fp32, and show the figures."""
        with self._stages.stage("verify", f"comparing with PyTorch on {len(files)} images") as stage:
            cases = parity_cases(files, self._model.config.image_size, self._model.patch_size)
            parities = measure_parity(torch_segmenter(self._served), self._candidates, cases)
            console.print(parity_table(parities))
            require_parity(parities, self._candidates)
            stage.outcome = f"all of {len(parities)} comparisons with PyTorch fp32 agree"
        return parities

    def place(self, repository: Path, parities: Sequence[Parity]) -> Manifest:
        """Write the model repository in its place; then report a missing engine library, if one is."""
        manifest = describe_export(self._model, self._profile, self._artefacts, parities, self._engine)
        with self._stages.stage("place", f"writing {repository}") as stage:
            paths = {artefact.file: self._workspace / artefact.file for artefact in manifest.artefacts}
            write_repository(repository, manifest, paths)
            stage.outcome = f"model repository {repository}"
        if self._missing_library is not None:
            raise EngineLibraryError(
                f"{self._missing_library}; {repository} holds the ONNX files alone"
            ) from self._missing_library
        return manifest

    def _add_onnx(self, stage: Stage, served: ServedModel, file: str, expected: Precision) -> None:
        """Export a graph, and read back that its products run in the expected precision."""
        path = self._workspace / file
        export_onnx(served, path)
        precision = product_precision(path)
        if precision != expected:
            raise ExportError(f"{file} came out in {precision}, expected {expected}; this is a defect: report it")
        self._candidates.append(Candidate(file, expected, lambda: onnx_segmenter(path)))
        self._add(stage, describe_artefact(path, None, precision))

    def _add(self, stage: Stage, artefact: Artefact) -> None:
        self._artefacts.append(artefact)
        stage.outcome = f"{artefact.file}, {artefact.precision}, {artefact.num_bytes / 1e6:.1f} MB"


def _check_exportable(model: ToCo, repository: Path) -> None:
    """Refuse early what would fail, or do harm, late."""
    image_size, patch, num_classes = model.config.image_size, model.patch_size, len(model.config.classes)
    if image_size % patch:
        raise ExportError(
            f"the run's image size {image_size} is not a multiple of the patch size {patch}; "
            f"set image_size in its config.yaml to {max(1, round(image_size / patch)) * patch}"
        )
    if num_classes >= IGNORE_INDEX:
        raise ExportError(f"the run has {num_classes} classes; a mask is bytes and serves at most {IGNORE_INDEX - 1}")
    if repository.exists() and not (repository / MANIFEST_FILE).is_file():
        raise ExportError(
            f"{repository} exists and is not a model repository: it has no {MANIFEST_FILE}, and would be replaced; "
            "give another folder with --repository"
        )
