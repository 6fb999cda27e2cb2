"""The model repository that ``toco_export.repository`` writes."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from tests.serve.toy_model import artefact, toy_manifest, write_toy_onnx, write_toy_repository
from toco_core.errors import ExportError
from toco_core.manifest import Artefact, Profile, Shape, read_manifest
from toco_export.repository import artefact_folder, complete_repository, model_config


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the toy network; read only."""
    return write_toy_repository(tmp_path_factory.mktemp("toy") / "repository")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the artefact and is to become a repository."""
    (tmp_path / "repository/toco/1").mkdir(parents=True)
    return tmp_path / "repository"


@pytest.fixture
def onnx_file(folder: Path) -> Path:
    path = artefact_folder(folder) / "model.onnx"
    write_toy_onnx(path)
    return path


def read_config(repository: Path, model: str) -> triton.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(encoding="utf-8"), triton.ModelConfig())


def parameters(config: triton.ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def square(batch: int, side: int) -> Shape:
    return Shape(batch=batch, height=side, width=side)


def test_the_repository_holds_the_manifest_two_models_and_the_artefact(tmp_path):
    repository = write_toy_repository(tmp_path / "repository")
    files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
    assert files == [
        "manifest.json",
        "toco/1/model.onnx",
        "toco/1/model.py",
        "toco/config.pbtxt",
        "toco_image/1/fitting.py",
        "toco_image/1/model.py",
        "toco_image/1/rgb.py",
        "toco_image/1/rle.py",
        "toco_image/config.pbtxt",
    ]
    assert read_manifest(repository).classes == ("red", "green", "bright, very")


def test_the_configuration_of_toco_says_what_the_manifest_says(repository):
    config = read_config(repository, "toco")
    assert (config.name, config.backend, config.max_batch_size) == ("toco", "python", 8)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("image", triton.TYPE_UINT8, [-1, -1, 3])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("mask", triton.TYPE_UINT8, [-1, -1]),
        ("confidence", triton.TYPE_UINT8, [-1, -1]),
    ]
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy"), "a queue policy makes requests stall"
    assert list(config.version_policy.specific.versions) == [1]
    assert [group.count for group in config.instance_group] == [2]
    assert list(config.model_warmup[0].inputs["image"].dims) == [96, 96, 3]
    assert parameters(config) == {
        "classes": '["red", "green", "bright, very"]',
        "palette": "[[0, 0, 0], [230, 25, 75], [60, 180, 75], [0, 130, 200]]",
        "patch_size": "16",
        "image_size": "96",
        "min_height": "32",
        "min_width": "32",
        "max_height": "512",
        "max_width": "512",
        "num_threads": "0",
        "onnx_fp32": "model.onnx",
    }


def test_the_configuration_of_toco_image_bounds_its_input_and_its_queue(repository):
    config = read_config(repository, "toco_image")
    assert (config.name, config.backend, config.max_batch_size) == ("toco_image", "python", 0)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("image_bytes", triton.TYPE_STRING, [1])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("mask", triton.TYPE_UINT8, [-1, -1]),
        ("confidence", triton.TYPE_UINT8, [-1, -1]),
        ("mask_png", triton.TYPE_STRING, [1]),
        ("confidence_png", triton.TYPE_STRING, [1]),
        ("mask_rle", triton.TYPE_STRING, [1]),
    ]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 30_000_000
    assert [(group.count, group.kind) for group in config.instance_group] == [(4, triton.ModelInstanceGroup.KIND_CPU)]
    stated = parameters(config)
    assert (stated["max_image_bytes"], stated["max_image_pixels"]) == ("67108864", "33554432")
    assert json.loads(stated["buckets"]) == [[32, 96], [48, 96], [64, 96], [96, 32], [96, 48], [96, 64], [96, 96]]


def test_a_configuration_reads_back_to_what_was_written(repository):
    for model in ("toco", "toco_image"):
        text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
        assert text_format.MessageToString(read_config(repository, model)) == text


def test_the_fp16_graph_is_named_where_there_is_one(onnx_file, folder):
    fp32 = toy_manifest(onnx_file).artefacts[0]
    fp16 = fp32.model_copy(update={"file": "model.fp16.onnx", "precision": "fp16"})
    shutil.copyfile(onnx_file, artefact_folder(folder) / "model.fp16.onnx")
    complete_repository(folder, toy_manifest(onnx_file, artefacts=(fp32, fp16)))
    stated = parameters(read_config(folder, "toco"))
    assert (stated["onnx_fp32"], stated["onnx_fp16"]) == ("model.onnx", "model.fp16.onnx")


def with_engines(onnx_file: Path, *precisions: str) -> tuple[Artefact, ...]:
    """The fp32 ONNX file, and an engine of TensorRT-RTX in each precision beside it."""
    fp32, engines = artefact(onnx_file), []
    for precision in precisions:
        path = onnx_file.with_name(f"model.{precision}.rtx")
        path.write_bytes(precision.encode())
        engines.append(artefact(path).model_copy(update={"format": "tensorrt-rtx", "precision": precision}))
    return (fp32, *engines)


def test_the_engine_of_tensorrt_rtx_is_named_fp16_before_fp32(onnx_file, folder):
    complete_repository(folder, toy_manifest(onnx_file, artefacts=with_engines(onnx_file, "fp32", "fp16")))
    stated = parameters(read_config(folder, "toco"))
    assert (stated["rtx_engine"], stated["onnx_fp32"]) == ("model.fp16.rtx", "model.onnx")


def test_a_backend_of_tritons_own_is_told_of_no_engine_that_it_cannot_load(onnx_file, folder):
    artefacts = with_engines(onnx_file, "fp16")
    complete_repository(folder, toy_manifest(onnx_file, artefacts=artefacts, backend="onnxruntime"))
    config = read_config(folder, "toco")
    assert config.default_model_filename == "model.onnx"
    assert "rtx_engine" not in parameters(config)


def test_onnx_runtime_runs_on_cuda_alone_unless_tensorrt_is_asked_for(onnx_file, folder):
    complete_repository(folder, toy_manifest(onnx_file, backend="onnxruntime"))
    config = read_config(folder, "toco")
    assert not config.HasField("optimization")
    assert parameters(config)["cudnn_conv_algo_search"] == "1"


def test_onnx_runtime_lets_tensorrt_build_one_engine_for_the_whole_profile(onnx_file, folder):
    profile = Profile(min=square(1, 32), opt=Shape(batch=2, height=96, width=112), max=square(8, 512))
    manifest = toy_manifest(onnx_file, backend="onnxruntime", tensorrt_provider=True, profile=profile)
    complete_repository(folder, manifest)
    config = read_config(folder, "toco")
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    options = dict(accelerator.parameters)
    assert options.pop("trt_engine_cache_prefix").startswith("toco_")
    assert (accelerator.name, options) == (
        "tensorrt",
        {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/tmp",
            "trt_profile_min_shapes": "image:1x32x32x3",
            "trt_profile_opt_shapes": "image:2x96x112x3",
            "trt_profile_max_shapes": "image:8x512x512x3",
        },
    )
    assert text_format.MessageToString(config) == (folder / "toco/config.pbtxt").read_text(encoding="utf-8")
    graph = onnx.load(onnx_file).graph
    assert [value.name for value in graph.input] == ["image"], "the profile names every input"
    assert len(graph.input[0].type.tensor_type.shape.dim) == 4


def test_engines_of_other_weights_have_other_names_in_the_cache(onnx_file):
    def prefix(order: tuple[int, ...]) -> str:
        write_toy_onnx(onnx_file, order)
        config = model_config(toy_manifest(onnx_file, backend="onnxruntime", tensorrt_provider=True))
        [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
        return accelerator.parameters["trt_engine_cache_prefix"]

    first, again, other = prefix((0, 1, 2, 3)), prefix((0, 1, 2, 3)), prefix((0, 2, 1, 3))
    assert first == again != other


TRITON_TYPES = {triton.TYPE_UINT8: onnx.TensorProto.UINT8}


def test_a_backend_of_tritons_own_gets_the_fp16_file_and_no_python_code(onnx_file, folder):
    fp32 = toy_manifest(onnx_file).artefacts[0]
    fp16 = fp32.model_copy(update={"file": "model.fp16.onnx", "precision": "fp16"})
    shutil.copyfile(onnx_file, artefact_folder(folder) / "model.fp16.onnx")
    complete_repository(folder, toy_manifest(onnx_file, artefacts=(fp32, fp16), backend="onnxruntime"))
    config = read_config(folder, "toco")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.fp16.onnx")
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, triton.ModelInstanceGroup.KIND_GPU)]
    assert parameters(config).keys() >= {"classes", "patch_size"}, "the client reads them"
    assert not parameters(config).keys() & {"onnx_fp32", "num_threads"}
    assert not (artefact_folder(folder) / "model.py").exists()
    assert (folder / "toco_image/1/model.py").exists(), "images are decoded in python whatever executes the network"


def test_what_tritons_own_backend_is_told_of_input_and_output_is_what_the_graph_has(onnx_file, folder):
    complete_repository(folder, toy_manifest(onnx_file, backend="onnxruntime"))
    config, graph = read_config(folder, "toco"), onnx.load(onnx_file).graph
    for stated, real in ((config.input, graph.input), (config.output, graph.output)):
        assert [(tensor.name, TRITON_TYPES[tensor.data_type]) for tensor in stated] == [
            (value.name, value.type.tensor_type.elem_type) for value in real
        ]
        for tensor, value in zip(stated, real, strict=True):
            sizes = [size.dim_value or -1 for size in value.type.tensor_type.shape.dim]
            assert sizes == [-1, *tensor.dims], "the batch comes first and is Triton's"


def test_a_backend_without_its_artefact_is_refused(onnx_file, folder):
    with pytest.raises(ExportError, match="no tensorrt artefact, which the backend tensorrt would serve"):
        complete_repository(folder, toy_manifest(onnx_file, backend="tensorrt"))


def test_toco_image_fits_images_to_the_sizes_of_the_manifest(onnx_file, folder):
    complete_repository(folder, toy_manifest(onnx_file, sizes=[[48, 96], [96, 96]]))
    assert json.loads(parameters(read_config(folder, "toco_image"))["buckets"]) == [[48, 96], [96, 96]]


def test_a_manifest_of_an_earlier_version_is_read_and_names_no_sizes(repository):
    manifest = json.loads((repository / "manifest.json").read_text())
    del manifest["sizes"], manifest["size_scores"]
    (repository / "manifest.json").write_text(json.dumps(manifest))
    assert (read_manifest(repository).sizes, read_manifest(repository).size_scores) == ((), None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(100, 96)], "the size 100x96 is not a multiple of the patch size 16; export with another"),
        ([(528, 96)], "the size 528x96 is outside the profile, 32x32 to 512x512; export with a profile that holds it"),
        ([(96, 16)], "the size 96x16 is outside the profile, 32x32 to 512x512; export with a profile that holds it"),
        ([], "the manifest names no size that images are fitted to; export the run again"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(onnx_file, folder, sizes, message):
    with pytest.raises(ExportError) as caught:
        complete_repository(folder, toy_manifest(onnx_file, sizes=sizes))
    assert str(caught.value) == message


def test_artefacts_that_are_not_the_manifests_are_refused(onnx_file, folder):
    manifest = toy_manifest(onnx_file)
    onnx_file.rename(onnx_file.with_name("other.onnx"))
    with pytest.raises(ExportError) as caught:
        complete_repository(folder, manifest)
    assert str(caught.value) == (
        "the artefacts are other.onnx, but the manifest describes model.onnx; give every one that it describes"
    )
    onnx_file.with_name("other.onnx").unlink()
    with pytest.raises(ExportError, match=r"the artefacts are none, but the manifest describes model\.onnx"):
        complete_repository(folder, manifest)
    onnx_file.write_bytes(b"changed since")
    with pytest.raises(ExportError, match=r"model\.onnx is not that of the manifest: its SHA-256 differs"):
        complete_repository(folder, manifest)
    assert not (folder / "manifest.json").exists()


def test_a_manifest_without_an_fp32_graph_is_refused(onnx_file, folder):
    fp16 = toy_manifest(onnx_file).artefacts[0].model_copy(update={"precision": "fp16"})
    with pytest.raises(ExportError, match="no fp32 ONNX artefact"):
        complete_repository(folder, toy_manifest(onnx_file, artefacts=(fp16,)))
