import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest
from PIL import Image
from toy_model import slow_down, write_toy_repository

from toco_core import fitting
from toco_core import rle as run_lengths
from toco_serve import Client, EmbeddedTriton, Ports

IMAGE_MODEL = Path(__file__).parents[2] / "triton_models" / "toco_image" / "1" / "model.py"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the toy network; read only."""
    return write_toy_repository(tmp_path_factory.mktemp("serve") / "repository")


@pytest.fixture
def own_repository(tmp_path: Path) -> Path:
    """A model repository that a test may break."""
    return write_toy_repository(tmp_path / "repository")


@pytest.fixture
def slow_repository(tmp_path: Path) -> Path:
    """A repository whose model takes half a second, and whose queue of encoded images holds one."""
    repository = write_toy_repository(tmp_path / "repository")
    slow_down(repository, 0.5)
    config = repository / "toco_image/config.pbtxt"
    config.write_text(
        config.read_text().replace("max_queue_size: 64", "max_queue_size: 1").replace("count: 4", "count: 1")
    )
    return repository


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedTriton]:
    """One real Triton for all tests that only ask it."""
    with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: EmbeddedTriton) -> Iterator[Client]:
    with Client(server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="session")
def network(repository: Path) -> onnxruntime.InferenceSession:
    """The same network in this process."""
    return onnxruntime.InferenceSession(repository / "toco/1/model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def served() -> Iterator[ModuleType]:
    """The code of the model ``toco_image``, with a stand-in for what Triton gives it."""
    name = "triton_python_backend_utils"
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, "run_lengths", run_lengths)  # these two lie beside it in a repository
        patch.setitem(sys.modules, "fitting", fitting)
        spec = importlib.util.spec_from_file_location("served_toco_image", IMAGE_MODEL)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    Image.MAX_IMAGE_PIXELS = limit
