"""An export under way: the stages after loading, and what each leaves for the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from toco_core.errors import ConfigError, DataError
from toco_core.manifest import Artefact, Backend, Precision, SizeScores
from toco_core.memory import peak_memory
from toco_export.config import Engine, ExportConfig
from toco_export.graph import ServedModel, exported_model
from toco_export.int8.calibration import calibrate
from toco_export.int8.quantization import describe_noise, quantize
from toco_export.onnx.file import count_product_types, external_data, require_precision, write_onnx
from toco_export.onnx.fp16_bf16 import convert
from toco_export.onnx.reduced import Reduced, product_layers
from toco_export.onnx.simplify import simplify
from toco_export.onnx.tracing import opset_for, trace_onnx
from toco_export.onnx.value_ranges import watched_ranges
from toco_export.parity.images import load_images
from toco_export.parity.verification import (
    MIN_AGREEMENT,
    Candidate,
    Verification,
    verification_cases,
    verify,
)
from toco_export.pipeline.description import describe_artefact, describe_export
from toco_export.pipeline.loading import Source
from toco_export.pipeline.size_scores import describe_sizes, score_sizes
from toco_export.pipeline.stages import Stage, Stages
from toco_export.reports.export_report import ExportReport
from toco_export.runtimes import Answer, InferenceBackend, open_onnx, torch_segmenter
from toco_export.tensorrt.builder import LIBRARIES, BuildOptions, build_engine
from toco_export.tensorrt.container import build_in_container
from toco_export.tensorrt.engine_report import EngineReport

RUNNABLE = frozenset({"fp32", "fp16"})  # ONNX Runtime has no bf16 products on a CPU


class Export:
    """An export under way: each method is a stage and leaves what later ones need.

    Args:
        source: What is exported.
        config: How.
        folder: Where the artefacts go.
        stages: Shows and times the stages, and names the one that fails.
    """

    def __init__(self, source: Source, config: ExportConfig, folder: Path, stages: Stages) -> None:
        folder.mkdir(parents=True)
        self._source, self._config, self._folder, self._stages = source, config, folder, stages
        self._static = source.profile.opt if config.static else None
        opt = (source.profile.opt.height, source.profile.opt.width)
        self._cases = verification_cases(source.images, source.sizes, opt, source.profile.max.batch)
        self._artefacts: list[Artefact] = []
        self._candidates: list[Candidate] = []
        self._engines: list[EngineReport] = []
        self._expected: list[Answer] = []
        self._ranges: Mapping[str, float] = {}
        self._notes: dict[str, list[str]] = defaultdict(list)
        self._fused: dict[str, str] = {}
        self._size_scores: SizeScores | None = None

    def observe(self) -> None:
        """Ask the network in PyTorch fp32: what it answers, and how large its numbers get."""
        with self._stages.stage("observe", f"running PyTorch fp32 on {len(self._source.images)} images") as stage:
            segment = torch_segmenter(ServedModel(self._source.model).eval())
            with watched_ranges(self._source.model) as self._ranges:
                self._expected = [segment(images) for images in self._cases]
            stage.outcome = f"largest number in a product: {max(self._ranges.values()):,.0f}"

    def trace(self) -> None:
        """Write the network as fp32 ONNX."""
        served = ServedModel(exported_model(self._source.model)).eval()
        with self._stages.stage("trace", "tracing the network"):
            graph = trace_onnx(served, self._static)
        with self._stages.stage("simplify", "folding constants, removing what is done twice") as stage:
            simplified = simplify(graph)
            write_onnx(graph, served, self._path("fp32"))
            self._add_onnx(stage, self._path("fp32"), "fp32")
            before, after = simplified.before.total(), simplified.after.total()
            self._notes[self._path("fp32").name].append(
                f"opset {opset_for('fp32')}; {before} operations as traced, {after} in the file."
            )
            self._candidates.append(self._candidate(self._path("fp32"), "fp32", MIN_AGREEMENT["fp32"]))

    def convert(self, precision: Reduced) -> None:
        """Write the network as ONNX in another precision."""
        with self._stages.stage("convert", f"making {precision}") as stage:
            path = self._path(precision)
            converted = convert(self._source.model, precision, self._path("fp32"), path, ranges=self._ranges)
            self._add_onnx(stage, path, precision, converted.kept_fp32)
            operations = converted.operations
            self._notes[path.name].append(
                f"opset {opset_for(precision)}; {operations.total()} operations, {operations['Cast']} of them casts."
            )
            if precision in RUNNABLE:
                self._candidates.append(self._candidate(path, precision, MIN_AGREEMENT[precision]))
            stand_in = torch_segmenter(converted.served)
            self._candidates.append(
                Candidate(
                    f"torch-{precision}", precision, MIN_AGREEMENT[precision], lambda: stand_in, is_artefact=False
                )
            )

    def quantize(self) -> None:
        """Write the network as ONNX in int8, inside the gate that the user sets."""
        with self._stages.stage("convert", "calibrating int8") as stage:
            path = self._path("int8")
            images = load_images(self._source.calibration_images, self._source.sizes)
            calibrations = calibrate(self._source.model, [image[None] for image in images])
            candidate = self._candidate(path, "int8", 1 - self._config.max_drop / 100)
            kept = quantize(
                self._path("fp32"), path, calibrations,
                lambda _: not verify(self._expected, [candidate], self._cases).failures, stage.progress,
            )  # fmt: skip
            linear = [name for name in calibrations if name not in kept]
            in_fp32 = tuple(name for name, _ in product_layers(self._source.model) if name not in linear)
            self._add_onnx(stage, path, "int8", in_fp32)
            self._candidates.append(candidate)
            others = "others than" if set(self._source.calibration_images).isdisjoint(self._source.images) else "also"
            self._notes[path.name].append(
                f"{len(linear)} of {len(calibrations)} linear layers in int8, calibrated on {len(images)} images "
                f"({others} those below); the noisiest, each by itself: {describe_noise(calibrations, linear)}."
            )

    def build(self, precision: Precision, engine: Engine) -> None:
        """Build an engine from the ONNX file of a precision."""
        onnx_file = self._path(precision)
        path = onnx_file.with_suffix(LIBRARIES[engine].suffix)
        with self._stages.stage("build", f"building the {precision} engine") as stage:
            config = self._config
            options = BuildOptions(config.workspace_gib, config.timing_cache, config.portable)
            if config.in_container:
                report = build_in_container(
                    onnx_file, path, self._source.profile, release=config.in_container, progress=stage.progress,
                    options=options,
                )  # fmt: skip
            else:
                report = build_engine(
                    onnx_file, path, self._source.profile, target=engine, progress=stage.progress, options=options
                )
            kept = next(artefact.kept_fp32 for artefact in self._artefacts if artefact.file == onnx_file.name)
            require_precision(report.product_types, precision, len(kept), path.name)
            self._engines.append(report)
            self._notes[path.name].append(report.summary())
            self._add(stage, describe_artefact(path, engine, precision, kept))

    def verify(self) -> Verification:
        """Compare what was made with the network in PyTorch fp32."""
        with self._stages.stage("verify", "comparing with PyTorch") as stage:
            verification = verify(
                self._expected,
                self._candidates,
                self._cases,
                progress=stage.progress,
            )
            outcome = "all agree" if not verification.failures else f"{len(verification.failures)} checks fail"
            stage.outcome = f"{len(verification.parities)} comparisons with PyTorch fp32: {outcome}"
        return verification

    def score_sizes(self) -> None:
        """Where not all of the run's sizes are served, say so and score the network with those that are."""
        source, reason = self._source, ""
        if not self._size_note():
            return
        with self._stages.stage("score", "scoring the sizes that are served") as stage:
            try:
                self._size_scores = score_sizes(source.run, source.model, source.sizes, stage.progress)
            except (ConfigError, DataError) as error:
                reason = f" ({error})"
            stage.outcome = self._size_note() + reason

    def report(self, verification: Verification, backend: Backend) -> ExportReport:
        """Describe all of it; ``backend`` is Triton's that will execute the network."""
        source, config = self._source, self._config
        provider = config.backend == "onnxruntime-tensorrt"
        served_by = {
            "backend": backend,
            "tensorrt_provider": provider,
            "tensorrt_workspace_gib": config.workspace_gib if provider else None,
            "container": config.in_container,
            "size_scores": self._size_scores,
        }
        return ExportReport(
            manifest=describe_export(
                source.model,
                source.profile,
                self._artefacts,
                verification.parities,
                self._engines,
                sizes=source.sizes,
            ).model_copy(update={"palette": source.palette, **served_by}),
            verification=verification,
            size_note=self._size_note(),
            notes={name: [*notes, *filter(None, [self._fused.get(name)])] for name, notes in self._notes.items()},
            required={candidate.name: candidate.min_agreement for candidate in self._candidates},
            seconds=self._stages.seconds,
            peak_bytes=peak_memory(),
        )

    def _size_note(self) -> str:
        return describe_sizes(self._source.sizes, self._source.model.sizes, self._size_scores)

    def _path(self, precision: Precision) -> Path:
        return self._folder / ("model.onnx" if precision == "fp32" else f"model.{precision}.onnx")

    def _candidate(self, path: Path, precision: Precision, min_agreement: float) -> Candidate:
        return Candidate(path.name, precision, min_agreement, lambda: self._open(path))

    def _add_onnx(self, stage: Stage, path: Path, precision: Precision, kept: tuple[str, ...] = ()) -> None:
        """Read back what was written."""
        require_precision(count_product_types(path), precision, len(kept), path.name)
        if external_data(path).exists():
            self._add(stage, describe_artefact(external_data(path), "onnx-data", precision))
        self._add(stage, describe_artefact(path, "onnx", precision, kept))

    def _open(self, path: Path) -> InferenceBackend:
        """Open an ONNX file, and note what ONNX Runtime made of it."""
        session = open_onnx(path)
        fused = ", ".join(f"{name} {count}" for name, count in sorted(session.fused.items())) or "none"
        self._fused[path.name] = f"ONNX Runtime runs {session.num_nodes} operations; fused: {fused}."
        return session.segment

    def _add(self, stage: Stage, artefact: Artefact) -> None:
        self._artefacts.append(artefact)
        kept = f"; in fp32: {', '.join(artefact.kept_fp32)}" if artefact.kept_fp32 else ""
        stage.outcome = f"{artefact.file}, {artefact.precision}, {artefact.num_bytes / 1e6:.1f} MB{kept}"
