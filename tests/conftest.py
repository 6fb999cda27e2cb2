"""Shared by all tests: Ctrl-C, and the code of the served model ``toco_image``."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from toco_core import fitting, rgb, rle

IMAGE_MODEL = Path(__file__).parents[1] / "triton_models" / "toco_image" / "1" / "model.py"

# Let Ctrl-C reach the tests that send it, also where whoever started them ignores it, as a background job does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def served() -> Iterator[ModuleType]:
    """The code of the model ``toco_image``, with a stand-in for what Triton gives it."""
    name = "triton_python_backend_utils"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, ModuleType(name))
        for code in (fitting, rgb, rle):  # copies of them lie beside it in a repository
            patch.setitem(sys.modules, code.__name__.rpartition(".")[2], code)
        spec = importlib.util.spec_from_file_location("served_toco_image", IMAGE_MODEL)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
