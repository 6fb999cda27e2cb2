"""From a run folder to a model repository: load, trace, simplify, convert, build, verify, score, place."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from toco_core.errors import ConfigError, ExportError
from toco_core.files import atomic_folder
from toco_core.manifest import Manifest
from toco_export.config import Engine, ExportConfig, resolve_backend
from toco_export.parity.verification import ParityError
from toco_export.pipeline.description import describe_backbone
from toco_export.pipeline.export import Export
from toco_export.pipeline.failure import clear_failure, failure_folder, write_script
from toco_export.pipeline.loading import Source, load_source
from toco_export.pipeline.stages import Stages
from toco_export.reports.export_report import HTML_FILE, terminal_table
from toco_export.repository import artefact_folder, complete_repository
from toco_export.tensorrt.builder import LIBRARIES, EngineLibraryError, load_library
from toco_export.tensorrt.container import require_docker

WITHOUT_GPU: Engine = "tensorrt-rtx"  # builds without one; Triton's own backend reads the other's


def export_run(run: Path, repository: Path, config: ExportConfig, console: Console) -> Manifest:
    """Export a run into a model repository, whole or not at all.

    Args:
        run: A run folder of ``toco-train`` or ``toco-import``.
        repository: Where the model repository goes. One that stands there is replaced at the very end.
        config: What to export.
        console: Where the stages and the figures are shown.

    Returns:
        The manifest of the new repository.

    Raises:
        ParityError: An artefact disagrees with PyTorch; nothing was placed, the report is in the failure folder.
        TocoError: A stage failed; nothing was placed.
    """
    stages = Stages(console)
    with stages.stage("load", f"reading {run}") as stage:
        engine = choose_engine(config)
        resolve_backend(config, engine)  # refuses what cannot be served before any work
        source = load_source(run, repository, config)
        stage.outcome = (
            f"{describe_backbone(source.model.config)}; {len(source.model.config.classes)} classes; "
            f"{len(source.images)} images{'' if engine else _no_engine(config)}"
        )
    clear_failure(repository)
    try:
        return _export(source, repository, config, engine, stages)
    except ExportError as error:
        write_script(run, repository, config, str(error))
        raise


def choose_engine(config: ExportConfig) -> Engine | None:
    """Return which engine is built, if one is; ``auto`` takes the first that the backend runs and whose library loads.

    Raises:
        EngineLibraryError: The library that was asked for does not load, or docker is not here.
        ConfigError: A container is asked for, and an engine that is not built in one.
    """
    if config.in_container:
        if config.target not in ("auto", "tensorrt"):
            raise ConfigError(f"--in-container builds engines of TensorRT; leave --target {config.target} out")
        require_docker(config.in_container)
        return "tensorrt"
    if config.target == "onnx":
        return None
    if config.target != "auto":
        load_library(config.target)
        return config.target
    for engine in _engines_for(config.backend):
        try:
            load_library(engine)
        except EngineLibraryError:
            continue
        return engine
    return None


def _engines_for(backend: str) -> tuple[Engine, ...]:
    """Return the engines that a backend of Triton can run and that can be built here, the best first."""
    if backend.startswith("onnxruntime"):
        return ()
    return ("tensorrt", WITHOUT_GPU) if torch.cuda.is_available() and backend != "python" else (WITHOUT_GPU,)


def _no_engine(config: ExportConfig) -> str:
    """Say that there is no engine, and how to get one where that was not asked for."""
    if config.target == "onnx" or not _engines_for(config.backend):
        return "; no engine"
    wanted = LIBRARIES[WITHOUT_GPU]
    return f"; no engine without {wanted.module}: pip install {wanted.package}"


def _export(source: Source, repository: Path, config: ExportConfig, engine: Engine | None, stages: Stages) -> Manifest:
    """Do every stage after loading."""
    with atomic_folder(repository) as folder:
        export = Export(source, config, artefact_folder(folder), stages)
        export.observe()
        export.trace()
        for precision in dict.fromkeys(config.precisions):
            if precision == "int8":
                export.quantize()
            elif precision != "fp32":
                export.convert(precision)
            if engine:
                export.build(precision, engine)
        verification = export.verify()
        if not verification.failures:
            export.score_sizes()
        report = export.report(verification, resolve_backend(config, engine))
        stages.console.print(terminal_table(report))
        if verification.failures:
            report.write(failure_folder(repository))
            raise ParityError(f"verify failed: {'; '.join(verification.failures)}")
        with stages.stage("place", f"writing {repository}") as stage:
            complete_repository(folder, report.manifest)
            report.write(folder)
            stage.outcome = f"model repository {repository}, with {HTML_FILE}"
    return report.manifest
