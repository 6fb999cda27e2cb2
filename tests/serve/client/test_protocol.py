"""The client protocol without a server: its steps, taken by the test."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_model import CLASSES, PALETTE

from toco_serve import Retry
from toco_serve.client.protocol import Conversation, ServerInfo
from toco_serve.client.steps import Call, Work


@pytest.mark.parametrize(("size", "model"), [((40, 30), "toco_image"), ((40, 300), "toco")])
def test_a_file_is_read_once_whether_its_image_fits_one_tile_or_not(tmp_path: Path, size, model):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    server = ServerInfo(CLASSES, np.array(PALETTE, np.uint8), (96, 96), 8)
    exchange = Conversation("host:1", 30, Retry(), "raw", None, server).segment_tiled(path, 0.25, None)
    step = next(exchange)
    while isinstance(step, Work):
        result = step.function()
        path.unlink(missing_ok=True)
        step = exchange.send(result)
    assert isinstance(step, Call)
    assert (step.method, step.arguments["model_name"]) == ("infer", model)
