"""The commands ``toco-serve`` and ``toco-predict`` as processes of their own."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image
from processes import Footprint
from pycocotools import mask as coco
from toy_model import CLASSES, PALETTE, quadrant_labels, quadrants

from toco_core.errors import DataError
from toco_serve import Client, EmbeddedTriton, Ports
from toco_serve.commands import predict as predict_cli
from toco_serve.commands.image_files import plan
from toco_serve.commands.predict import main as predict
from toco_serve.commands.serve import find_repository

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
    assert status == 1
    assert shown.out == f"2 of 4 images segmented into {out}\n"
    broken, notes = shown.err.splitlines()
    assert broken.startswith(f"toco-predict: error: {photos}/broken.jpg: the image cannot be read: it is damaged (")
    assert notes == (
        f"toco-predict: error: {tmp_path}/notes.txt: the image cannot be read: it is text, "
        "expected JPEG, PNG, WebP, BMP or TIFF; replace it"
    )
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["a.mask.png", "a.overlay.jpg", "more/b.mask.png", "more/b.overlay.jpg", "predictions.json"]
    summary = json.loads((out / "predictions.json").read_text())
    assert summary["classes"] == list(CLASSES)
    assert summary["images"] == [
        {
            "image": f"{photos}/{name}",
            "height": height,
            "width": width,
            "class_shares": ANY,
            "mask": f"{out}/{stem}.mask.png",
            "overlay": f"{out}/{stem}.overlay.jpg",
        }
        for name, stem, height, width in (("a.png", "a", 90, 120), ("more/b.JPG", "more/b", 64, 50))
    ]
    assert summary["images"][0]["class_shares"] == dict.fromkeys(
        ("background", *CLASSES), pytest.approx(0.25, abs=0.01)
    )
    assert summary["failed"] == [
        {"image": f"{photos}/broken.jpg", "error": broken.removeprefix("toco-predict: error: ")},
        {"image": f"{tmp_path}/notes.txt", "error": notes.removeprefix("toco-predict: error: ")},
    ]
    mask = Image.open(out / "a.mask.png")
    assert (mask.mode, mask.size) == ("P", (120, 90))
    assert quadrant_labels(np.asarray(mask)) == [0, 1, 2, 3]
    assert mask.getpalette()[:12] == [level for colour in PALETTE for level in colour]
    assert Image.open(out / "more/b.overlay.jpg").size == (50, 64)


def test_toco_predict_writes_run_lengths_and_leaves_out_what_is_not_wanted(server, client, tmp_path):
    Image.fromarray(quadrants(90, 120)).save(tmp_path / "a.png")
    arguments = [
        str(tmp_path / "*.p?g"),
        "--rle",
        "--no-masks",
        "--no-overlays",
        "--answer-format",
        "rle",
        "--url",
        server.grpc_url,
    ]
    assert predict([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]
    (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert sorted(entry) == ["class_shares", "height", "image", "rle", "width"]
    assert list(entry["rle"]) == list(CLASSES)
    mask = client.segment(tmp_path / "a.png").mask
    for label, name in enumerate(CLASSES, start=1):
        np.testing.assert_array_equal(coco.decode(entry["rle"][name]), mask == label)


def test_toco_predict_reads_each_image_once_and_lists_failures_in_the_order_of_the_images(
    server, tmp_path, capsys, monkeypatch
):
    Image.fromarray(quadrants(40, 40)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no image")
    first_answer = predict_cli.write

    def write_without_the_file(prediction, *rest):
        prediction.source.unlink()
        return first_answer(prediction, *rest)

    monkeypatch.setattr(predict_cli, "write", write_without_the_file)
    images = [str(tmp_path / name) for name in ("text.png", "a.png", "absent.png")]
    assert predict([*images, "--out", str(tmp_path / "out"), "--url", server.grpc_url]) == 1
    assert capsys.readouterr().out == f"1 of 3 images segmented into {tmp_path}/out\n"
    assert Image.open(tmp_path / "out" / "a.overlay.jpg").size == (40, 40)
    failed = json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"]
    assert [failure["image"] for failure in failed] == [images[0], images[2]]
    assert failed[0]["error"].startswith(f"{images[0]}: the image cannot be read: it is text")
    assert failed[1]["error"].startswith(f"cannot read {images[2]}: no such file")


def test_toco_predict_keeps_what_was_done_when_the_server_goes_away(repository, tmp_path, capsys, monkeypatch):
    for name in ("a", "b", "c"):
        Image.fromarray(quadrants(40, 40)).save(tmp_path / f"{name}.png")
    with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as server:
        first_answer = predict_cli.write

        def write_and_stop(*arguments: object) -> dict[str, object]:
            server.stop()
            return first_answer(*arguments)

        monkeypatch.setattr(predict_cli, "write", write_and_stop)
        arguments = [str(tmp_path), "--in-flight", "1", "--out", str(tmp_path / "out"), "--url", server.grpc_url]
        assert predict(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == f"1 of 3 images segmented into {tmp_path}/out\n"
    (only,) = shown.err.splitlines()
    assert re.match(r"toco-predict: error: (no server answers at|.* closed the connection: )", only)
    summary = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [entry["image"] for entry in summary["images"]] == [f"{tmp_path}/a.png"]
    assert [failure["image"] for failure in summary["failed"]] == [f"{tmp_path}/b.png"]


def test_toco_predict_says_what_it_cannot_write(server, tmp_path, capsys):
    Image.fromarray(quadrants(40, 40)).save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    asked = [str(tmp_path / "a.png"), "--url", server.grpc_url]
    assert predict([*asked, "--out", str(tmp_path / "file" / "out")]) == 2
    complaint = "(Not a directory); make room or give another --out"
    assert capsys.readouterr().err == f"toco-predict: error: cannot write {tmp_path}/file/out {complaint}\n"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.mask.png").mkdir()
    assert predict([*asked, "--out", str(tmp_path / "out")]) == 1
    complaint = "(Is a directory); make room or give another --out"
    assert capsys.readouterr().err == (
        f"toco-predict: error: {tmp_path}/a.png: cannot write {tmp_path}/out/a {complaint}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: IMAGE, --out"),
        (["a.png", "--out", "x", "--timeout", "0"], "argument --timeout: '0' is not a number above zero"),
        (
            ["a.png", "--out", "x", "--in-flight", "none"],
            "argument --in-flight: 'none' is not a whole number above zero",
        ),
    ],
)
def test_toco_predict_refuses_a_wrong_command_line_in_one_sentence(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as left:
        predict(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"toco-predict: error: {complaint}; see toco-predict --help\n"


def test_toco_predict_speaks_tls_where_a_certificate_is_given(tmp_path, capsys):
    arguments = ["a.png", "--out", str(tmp_path), "--root-certificates", str(tmp_path / "none.pem")]
    assert predict(arguments) == 2
    assert capsys.readouterr().err == (
        f"toco-predict: error: cannot read {tmp_path}/none.pem: no such file or directory; give a PEM file\n"
    )


def test_images_with_one_stem_keep_their_whole_names_and_earlier_answers_are_no_images(tmp_path):
    for name in ("tile.jpg", "tile.webp", "other.png", "out/other.mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    targets = {p.source.name: p.target for p in plan([tmp_path], tmp_path / "out")}
    assert targets == {
        "other.png": tmp_path / "out" / "other",
        "tile.jpg": tmp_path / "out" / "tile.jpg",
        "tile.webp": tmp_path / "out" / "tile.webp",
    }


def test_a_mask_beside_its_photograph_is_left_out_of_a_folder_but_not_of_a_pattern(tmp_path):
    for name in ("a.jpg", "a.png", "deep/b.jpg", "deep/b.png", "deep/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(image: Path) -> list[str]:
        return [str(p.source.relative_to(tmp_path)) for p in plan([image], tmp_path / "out")]

    assert found(tmp_path) == ["a.jpg", "deep/a.png", "deep/b.jpg"]
    assert found(tmp_path / "deep/*.png") == ["deep/a.png", "deep/b.png"]


def test_two_images_of_one_name_are_refused_before_one_overwrites_the_other(tmp_path):
    images = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    with pytest.raises(DataError) as caught:
        plan(images, tmp_path / "out")
    assert str(caught.value) == (
        f"{images[0]} and {images[1]} would be written to one file; use another --out for each"
    )


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(
        DataError,
        match=r"holds no image; expected files that end in \.bmp, \.jfif, \.jpeg, \.jpg, \.png, \.tif, \.tiff, \.webp",
    ):
        plan([tmp_path], tmp_path / "out")


def test_a_pattern_stands_for_the_images_that_it_matches(tmp_path):
    for name in ("a.jpg", "deep/er/b.jpg", "deep/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "[x].jpg").touch()  # a file of that very name is no pattern

    def found(pattern: str) -> list[str]:
        return [str(p.source.relative_to(tmp_path)) for p in plan([tmp_path / pattern], tmp_path / "out")]

    assert found("**/*.jpg") == ["[x].jpg", "a.jpg", "deep/er/b.jpg"]
    assert found("deep/*") == ["deep/c.png"]
    assert found("[x].jpg") == ["[x].jpg"]
    with pytest.raises(DataError) as caught:
        found("*.gif")
    assert str(caught.value).startswith(
        f"the pattern {tmp_path}/*.gif matches no image; expected files that end in .bmp"
    )
