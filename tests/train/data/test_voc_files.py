"""Lists and annotations of VOC devkits in the forms that people write them."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from toco_core.errors import DataError
from toco_train.config import DataConfig
from toco_train.data.opening import open_source
from toco_train.data.readers.voc import VOC_CLASSES
from toco_train.data.readers.voc_files import read_annotation, read_list

IMAGES = ("000001", "000002", "my photo", "img.v2", "café")


def listed(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_list(path, IMAGES)


@pytest.mark.parametrize(
    "content",
    [
        "000001\n000002\n",
        "\ufeff000001\r\n000002\r\n\r\n",
        "000001\r000002\r",
        "000001\n\n  000002  \n000001\n",
        "000001 000002",
        "# images to train on\n000001\n000002",
        "000001.jpg\n000002.JPG\n",
        "JPEGImages/000001.jpg\nJPEGImages/000002.jpg\n",
        "/data/VOC2012/JPEGImages/000001.jpg\n./000002.png\n",
        "JPEGImages\\000001.jpg\r\nJPEGImages\\000002.jpg\r\n",
        "/J/000001.jpg /SegmentationClassAug/000001.png\n/J/000002.jpg /SegmentationClassAug/000002.png",
        "000001.jpg,000001.png\n000002.jpg,000002.png",
        "000001.jpg\t000001.png\n000002.jpg\t000002.png",
        "\ufeff000001\n000002\n".encode("utf-16-le"),
    ],
)
def test_a_list_gives_the_same_images_however_it_is_written(tmp_path, content):
    assert listed(tmp_path, content) == ["000001", "000002"]


def test_names_with_blanks_dots_and_accents_are_names(tmp_path):
    assert listed(tmp_path, "my photo\nimg.v2\nmy photo.jpg\nimg.v2.jpg\ncafé.jpg") == ["my photo", "img.v2", "café"]


def test_a_name_that_is_not_utf_8_is_that_of_the_file(tmp_path):
    assert listed(tmp_path, b"caf\xe9\n000001\n") == ["caf\udce9", "000001"]


@pytest.mark.parametrize("flag", ["-1", "0", "1", " 1"])
def test_a_list_of_a_class_is_refused_by_its_line(tmp_path, flag):
    with pytest.raises(
        DataError, match=rf"train\.txt line 2 holds '000002 +{flag.strip()}', an image and whether a class"
    ):
        listed(tmp_path, f"000001\n000002 {flag}\n")


def test_a_line_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.txt line 1 holds '000001 cat dog', expected the name of one image"):
        listed(tmp_path, "000001 cat dog\n")


def write_devkit(path, lists, annotations):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    for name, content in annotations.items():
        Image.new("RGB", (12, 8)).save(path / "JPEGImages" / f"{name}.jpg")
        (path / "Annotations" / f"{name}.xml").write_bytes(content)
    for name, content in lists.items():
        (path / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(content)


def xml(encoding="utf-8", *, declared=None, name="cat", note="照片"):
    text = f'<?xml version="1.0" encoding="{declared or encoding}"?>\n<annotation><folder>{note}</folder>' \
        f"<object><name>{name}</name></object></annotation>"  # fmt: skip
    return text.encode(encoding)


@pytest.mark.parametrize("listing", ["train_aug", "trainaug", "train"])
def test_what_val_names_is_not_trained_on_whatever_list_names_it_too(tmp_path, listing):
    write_devkit(tmp_path, {listing: "a\nb\nc\n", "val": "c\nd\n"}, dict.fromkeys("abcd", xml()))
    source = open_source(DataConfig(path=str(tmp_path)), seed=0)
    assert [sample.name for sample in source.train] == ["a", "b"]
    assert [sample.name for sample in source.val] == ["c", "d"]
    (notice,) = source.notices
    assert str(notice) == (
        "images of ImageSets/Segmentation/val.txt that "
        f"ImageSets/Segmentation/{listing}.txt names, too: 1, for example c; not trained on"
    )


@pytest.mark.parametrize(
    "content",
    [
        xml("gb2312"), xml("gbk", declared="gb2312", note="照片鎔"), xml("gb18030"), xml("big5", note="照片"),
        xml("shift_jis", note="写真"), xml("euc-jp", note="写真"), xml("euc-kr", note="사진"),
        xml("cp1251", note="фото", declared="windows-1251"), xml("koi8-r", note="фото"), xml("cp1252", note="“café”"),
        xml("iso-8859-2", note="łódź"), xml("utf-8-sig", declared="utf-8"), xml("utf-16"),
        xml("utf-16-le", declared="utf-16"),
        xml("utf-8", declared="utf-16"), xml("utf-8", declared="ascii"), xml("utf-8", declared="UTF8"),
        "<annotation><folder>照片</folder><object><name> cat\n</name></object></annotation>".encode(),
    ],
)  # fmt: skip
def test_an_annotation_is_read_in_every_encoding_that_it_may_declare(tmp_path, content):
    (tmp_path / "a.xml").write_bytes(content)
    assert read_annotation(tmp_path / "a.xml") == {"cat"}


def test_a_class_name_in_gb2312_is_that_of_the_class_list(tmp_path):
    write_devkit(tmp_path, {"train": "a\n"}, {"a": xml("gb2312", name="猫")})
    (tmp_path / "classes.yaml").write_text("classes: [狗, 猫]", encoding="utf-8")
    assert open_source(DataConfig(path=str(tmp_path)), seed=0).train[0].labels == (2,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (xml("gb2312", declared="utf-8"), "it declares the encoding 'utf-8', and byte"),
        (xml("gb2312").partition(b"\n")[2], "it declares no encoding but utf-8, and byte"),
        (xml(declared="klingon"), "it declares the encoding 'klingon', which Python does not know"),
        (xml(declared="rot13"), "it declares 'rot13', which is no encoding of text"),
        (xml(declared="base64"), "which is no encoding of text"),
        (b"", "no element found"),
        (b"<annotation><object>", "no element found"),
        (b"<annotations><image/></annotations>", "holds 'annotations', expected 'annotation'; export it as VOC"),
        (b"<annotation><object><class>cat</class></object></annotation>", "object 1 has no name; name its class"),
        (b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(b'<!ENTITY %c "%s">' % (i, b"&%c;" % (i - 1) * 10)
         for i in range(98, 118)) + b"]><annotation><object><name>&u;</name></object></annotation>", "cannot be read"),
    ],
)  # fmt: skip
def test_an_annotation_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, content, reason):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        read_annotation(tmp_path / "a.xml")
    assert "a.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_and_masks_of_a_devkit_that_are_not_read_are_named(tmp_path):
    write_devkit(tmp_path, {"train": "a\nb\n"}, {"a": xml(), "b": xml()})
    (tmp_path / "JPEGImages" / "c.heic").touch()
    (tmp_path / "SegmentationClass").mkdir()
    Image.new("L", (12, 8)).save(tmp_path / "SegmentationClass" / "a.jpg")
    Image.new("L", (12, 8)).save(tmp_path / "SegmentationClass" / "b.png")
    source = open_source(DataConfig(path=str(tmp_path)), seed=0)
    assert {notice.kind: notice.examples for notice in source.notices} == {
        "unread_suffix": ("JPEGImages/c.heic",),
        "unused_mask": ("SegmentationClass/a.jpg",),
    }
    assert source.classes == VOC_CLASSES


def test_a_listed_image_of_a_kind_that_is_not_read_is_said_to_be_there(tmp_path):
    write_devkit(tmp_path, {"train": "a\nc\n"}, {"a": xml()})
    (tmp_path / "JPEGImages" / "c.heic").touch()
    with pytest.raises(DataError, match=r"\(there is c\.heic, of a kind that is not read: convert it to JPEG\)"):
        open_source(DataConfig(path=str(tmp_path)), seed=0)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.integers(0, 150))
def test_any_bytes_are_an_annotation_or_a_list_or_refused_in_a_sentence(tmp_path, inserted, place):
    whole = xml("gb2312")
    (tmp_path / "a.xml").write_bytes(whole[:place] + inserted + whole[place + len(inserted) // 2 :])
    for read in (lambda: read_annotation(tmp_path / "a.xml"), lambda: listed(tmp_path, b"000001\n" + inserted)):
        said = ""
        try:
            read()
        except DataError as error:
            said = str(error)
        assert "\n" not in said
