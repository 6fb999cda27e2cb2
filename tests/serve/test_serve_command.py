"""The commands ``toco-serve`` and ``toco-predict`` as processes of their own."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_embedded_triton import Footprint
from toy_model import quadrant_labels, quadrants

from toco.errors import DataError
from toco_serve import Client
from toco_serve.predict_cli import main as predict
from toco_serve.predict_cli import plan
from toco_serve.serve_cli import find_repository

ANY_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


def command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_toco_serve_says_where_it_serves_and_a_signal_ends_it_with_status_0_and_nothing_left(repository, stop):
    arguments = [command("toco-serve"), str(repository), *ANY_PORTS]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serving:
        panel = ""
        while "Ctrl-C stops it" not in panel:
            line = serving.stdout.readline()
            assert line, panel
            panel += line
        url = re.search(r"toco-predict IMAGE --url (127\.0\.0\.1:\d+) --out masks", panel)[1]
        assert "red, green, bright, very" in panel
        assert "model.onnx (fp32)" in panel
        with Client(url) as client:
            assert client.segment(quadrants(32, 32)).mask.shape == (32, 32)
        footprint = Footprint(serving.pid)
        serving.send_signal(stop)
        assert serving.wait(10) == 0
    assert footprint.left() == []


def test_toco_serve_without_a_repository_gives_one_sentence_and_status_2(tmp_path):
    done = subprocess.run([command("toco-serve"), tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"toco-serve: error: {tmp_path} is not a model repository: it has no manifest.json; make one with toco-export\n"
    )


def test_a_run_folder_stands_for_the_repository_that_was_exported_into_it(repository, tmp_path):
    (tmp_path / "repository").symlink_to(repository)
    assert find_repository(tmp_path) == tmp_path / "repository"
    assert find_repository(repository) == repository
    assert find_repository(tmp_path / "other") == tmp_path / "other"


def test_toco_predict_without_a_server_gives_one_sentence_and_status_2_at_once(tmp_path, capsys):
    assert predict([str(tmp_path), "--url", "localhost:1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "toco-predict: error: no server answers at localhost:1: "
        "start one with toco-serve, or give the address of one that runs\n"
    )


def test_toco_predict_goes_on_past_a_bad_file_and_names_it_at_the_end(server, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.fromarray(quadrants(90, 120)).save(photos / "a.png")
    Image.fromarray(quadrants(64, 50)).save(photos / "more" / "b.JPG", quality=95)
    (photos / "broken.jpg").write_bytes((photos / "more" / "b.JPG").read_bytes()[:700])
    (photos / "read me.txt").write_text("not looked at, being in a folder")
    (tmp_path / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    status = predict([str(photos), str(tmp_path / "notes.txt"), "--url", server.grpc_url, "--out", str(out)])
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == f"2 of 4 images segmented into {out}\n"
    broken, notes = shown.err.splitlines()
    assert broken.startswith(f"toco-predict: error: {photos}/broken.jpg: the image is damaged (")
    assert notes == (
        f"toco-predict: error: {tmp_path}/notes.txt: the data is 8 bytes of text; "
        "a JPEG, PNG, WebP or BMP image is expected"
    )
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["a.mask.png", "a.overlay.jpg", "more/b.mask.png", "more/b.overlay.jpg"]
    mask = Image.open(out / "a.mask.png")
    assert (mask.mode, mask.size) == ("P", (120, 90))
    assert quadrant_labels(np.asarray(mask)) == [0, 1, 2, 3]
    assert mask.getpalette()[3:6] == [128, 0, 0]
    assert Image.open(out / "more/b.overlay.jpg").size == (50, 64)


def test_images_with_one_stem_keep_their_whole_names_and_earlier_answers_are_no_images(tmp_path):
    for name in ("tile.jpg", "tile.png", "other.png", "out/other.mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    targets = {p.source.name: p.target for p in plan([tmp_path], tmp_path / "out")}
    assert targets == {
        "other.png": tmp_path / "out" / "other",
        "tile.jpg": tmp_path / "out" / "tile.jpg",
        "tile.png": tmp_path / "out" / "tile.png",
    }


def test_two_images_of_one_name_are_refused_before_one_overwrites_the_other(tmp_path):
    images = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    with pytest.raises(DataError) as caught:
        plan(images, tmp_path / "out")
    assert str(caught.value) == (
        f"{images[0]} and {images[1]} would be written to one file; use another --out for each"
    )


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no image; expected files that end in \.bmp, \.jpeg, \.jpg, \.png, \.webp"
    ):
        plan([tmp_path], tmp_path / "out")
