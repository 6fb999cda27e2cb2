"""Tables of labels, in the forms that people and tools write: understood and said, or refused by the row."""

import csv
import io
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toco_core.errors import DataError
from toco_train.data.readers.label_table import read_label_table

ON_DISK = ("a", "b", "c", "d")


def read(table, known=(), *, no_class=None, encoding="utf-8"):
    """Read a table, given as text, whose images are a.jpg to d.jpg."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        path.write_bytes(table.encode(encoding) if isinstance(table, str) else table)
        return read_label_table(path, known, no_class=no_class, on_disk=ON_DISK.__contains__)


def tags(table):
    found = {}
    for row in table.rows:
        found.setdefault(row.file, set()).update(row.classes)
    return found


def refusal(table, known=(), **options):
    with pytest.raises(DataError) as caught:
        read(table, known, **options)
    assert "\n" not in str(caught.value)
    return re.sub(r"\S*/labels", "labels", str(caught.value))


@pytest.mark.parametrize(
    ("present", "absent"),
    [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("TRUE", "FALSE"), ("yes", "no"), ("Y", "N"), ("t", "f"), ("x", ""),
     ("1", "-1"), ("1.0", "-1.0"), ("1", ""), ("1", "nan"), ("+1", "-1"), ("1e0", "0e0"), ("on", "off")],
)  # fmt: skip
def test_a_column_for_each_class_is_understood_however_its_marks_are_spelled(present, absent):
    table = read(f"image,cat,dog\na.jpg,{present},{absent}\nb.jpg,{absent},{present}\nc.jpg,{present},{present}\n"
                 f"d.jpg,{absent},{absent}\n")  # fmt: skip
    assert table.classes == ("cat", "dog")
    assert tags(table) == {"a.jpg": {"cat"}, "b.jpg": {"dog"}, "c.jpg": {"cat", "dog"}, "d.jpg": set()}
    assert f"one column for each class, {present} is present" in table.understood
    assert table.understood.endswith("for example line 4: c.jpg has cat, dog")


def test_classes_may_be_called_class1_and_class2():
    table = read("image,class1,class2\na.jpg,1,0\nb.jpg,1,1\n")
    assert tags(table) == {"a.jpg": {"class1"}, "b.jpg": {"class1", "class2"}}
    assert tags(read("image,class1,class2\na.jpg,cat,\nb.jpg,cat,dog\n")) == {"a.jpg": {"cat"}, "b.jpg": {"cat", "dog"}}


def test_minus_one_counts_as_not_present_and_the_sentence_says_so():
    table = read("image,cat,dog\na.jpg,1,-1\nb.jpg,-1,0\n")
    assert tags(table) == {"a.jpg": {"cat"}, "b.jpg": set()}
    assert "1 is present and -1 or 0 is not" in table.understood


CELLS = {
    "bars": ("cat|dog", "several in a cell separated by '|'"),
    "bars and blanks": (" cat | dog ", "several in a cell separated by '|'"),
    "semicolons": ("cat;dog", "several in a cell separated by ';'"),
    "commas in quotes": ('"cat, dog"', "several in a cell separated by ','"),
    "line breaks in quotes": ('"cat\ndog"', "several in a cell separated by line breaks"),
    "blanks": ("cat dog", "several in a cell separated by blanks"),
    "slashes": ("cat/dog", "several in a cell separated by '/'"),
    "Chinese commas": ("cat、dog", "several in a cell separated by '、'"),
    "a Python list": ("\"['cat', 'dog']\"", "several in a cell as a list"),
    "a Python set": ("\"{'cat', 'dog'}\"", "several in a cell as a list"),
    "a Python tuple": ("\"('cat', 'dog')\"", "several in a cell as a list"),
    "a numpy array": ("['cat' 'dog']", "several in a cell as a list"),
    "a JSON list": ('"[""cat"", ""dog""]"', "several in a cell as a list"),
    "a list without quotes": ('"[cat, dog]"', "several in a cell separated by ','"),
    "Label Studio's choices": ('"{""choices"": [""cat"", ""dog""]}"', "several in a cell as a list"),
    "Label Studio's regions": (
        '"[{""x"": 1, ""rectanglelabels"": [""cat""]}, {""x"": 2, ""rectanglelabels"": [""dog""]}]"',
        "several in a cell as a list",
    ),
}


@pytest.mark.parametrize("form", CELLS)
def test_several_tags_in_a_cell_are_understood_and_said(form):
    cell, said = CELLS[form]
    table = read(f"image,labels\na.jpg,{cell}\nb.jpg,cat\nc.jpg,dog\nd.jpg,\n")
    assert tags(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"cat"}, "c.jpg": {"dog"}, "d.jpg": set()}
    assert said in table.understood
    assert re.search(r"line \d: a\.jpg has cat, dog", table.understood)


BOXES = {
    "TensorFlow": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,cat,1,2,3,4\na.jpg,9,9,dog,1,2,3,4\n"
    "b.jpg,9,9,dog,1,2,3,4\n",
    "x, y, w, h": "image,x,y,w,h,label\na.jpg,1,2,3,4,cat\na.jpg,1,2,3,4,dog\nb.jpg,1,2,3,4,dog\n",
    "without a header": "a.jpg,1,2,3,4,cat\na.jpg,5,6,7,8,dog\nb.jpg,1,2,3,4,dog\nc.jpg,,,,,\n",
    "Open Images": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\na,v,cat,1,0,1,0,1,0\n"
    "a,v,dog,1,0,1,0,1,0\nb,v,dog,1,0,1,0,1,1\n",
    "AutoML": "TRAIN,gs://b/a.jpg,cat,0.1,0.2,,,0.3,0.4,,\nTRAIN,gs://b/a.jpg,dog,0.1,0.2,,,0.3,0.4,,\n"
    "VALIDATION,gs://b/b.jpg,dog,0.1,0.2,,,0.3,0.4,,\n",
}


@pytest.mark.parametrize("form", BOXES)
def test_a_table_of_boxes_gives_the_classes_and_says_that_the_boxes_are_not_used(form):
    table = read(BOXES[form])
    found = {Path(file).stem: classes for file, classes in tags(table).items()}
    assert {name: found[name] for name in "ab"} == {"a": {"cat", "dog"}, "b": {"dog"}}
    assert found.get("c", set()) == set()
    assert "not used: column" in table.understood


@pytest.mark.parametrize(
    "table",
    [
        ",image,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        "Unnamed: 0,image,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        "0,a.jpg,cat\n1,b.jpg,dog\n",
        "id,file_name,tags\n17,a.jpg,cat\n4,b.jpg,dog\n",
    ],
)
def test_an_index_in_front_is_no_class_and_no_file(table):
    assert tags(read(table)) == {"a.jpg": {"cat"}, "b.jpg": {"dog"}}


@pytest.mark.parametrize("nothing", ["", "nan", "NaN", "NA", "N/A", "null", "None", "<NA>", "-", "[]", '""'])
def test_an_empty_cell_or_nan_is_no_class(nothing):
    table = read(f"image,label\na.jpg,cat\nb.jpg,{nothing}\n")
    assert table.classes == ("cat",)
    assert tags(table)["b.jpg"] == set()


def test_the_class_that_stands_for_nothing_may_be_called_none():
    assert tags(read("image,label\na.jpg,cat\nb.jpg,None\n", no_class="None"))["b.jpg"] == {"None"}


@pytest.mark.parametrize(
    ("table", "encoding"),
    [
        ("image,label\na.jpg,Köter\nb.jpg,dog\n", "utf-8-sig"),
        ("image;label\r\na.jpg;Köter\r\nb.jpg;dog\r\n", "utf-8"),
        ("sep=;\nimage;label\na.jpg;Köter\nb.jpg;dog\n", "utf-8"),
        ("image\tlabel\r\na.jpg\tKöter\r\nb.jpg\tdog\r\n", "utf-16"),
        ("\ufeffimage,label\na.jpg,Köter\nb.jpg,dog\n", "utf-16-be"),
        ("\ufeffimage,label\na.jpg,Köter\nb.jpg,dog\n", "utf-32-le"),
        ("image,label\ra.jpg,Köter\rb.jpg,dog\r", "utf-8"),
        ("image|label\na.jpg|Köter\nb.jpg|dog", "utf-8"),
        ("label,image\nKöter,a.jpg\ndog,b.jpg\n", "utf-8"),
        ('"image","label"\n"a.jpg","Köter"\n"b.jpg","dog"\n', "utf-8"),
    ],
)
def test_a_table_is_read_in_every_way_that_it_may_be_saved(table, encoding):
    assert tags(read(table, encoding=encoding)) == {"a.jpg": {"Köter"}, "b.jpg": {"dog"}}


def test_numbers_and_booleans_are_classes_only_if_they_are_listed():
    for value in ("0", "3", "1.5", "-1", "1e3", "True", "false", "yes"):
        said = refusal(f"image,label\na.jpg,{value}\nb.jpg,cat\n")
        assert f"labels.csv line 2 has {value!r}, expected the name of a class" in said
        assert tags(read(f"image,label\na.jpg,{value}\nb.jpg,cat\n", (value, "cat")))["a.jpg"] == {value}
    assert "the header of labels.csv has '0', expected the name" in refusal("image,0,1\na.jpg,1,0\nb.jpg,0,1\n")
    assert "line 2 has '0', expected the name" in refusal('image,labels\na.jpg,"[0, 1]"\n')


def test_a_blank_inside_a_tag_stays_where_the_class_list_a_quote_or_another_separator_says_so():
    plain = "image,labels\na.jpg,traffic light\nb.jpg,car\n"
    assert refusal(plain) == (
        "labels.csv line 2 has 'traffic light', which may be one class or several; list the classes in classes.yaml, "
        "or separate the classes of an image by | throughout"
    )
    assert tags(read(plain, ("traffic light", "car")))["a.jpg"] == {"traffic light"}
    assert tags(read(plain.replace("traffic light", '"traffic light"')))["a.jpg"] == {"traffic light"}
    assert tags(read(plain.replace("traffic light", "traffic light|car")))["a.jpg"] == {"traffic light", "car"}
    assert tags(read(plain.replace("traffic light", "['traffic light']")))["a.jpg"] == {"traffic light"}
    listed = read(plain.replace("traffic light", "traffic light car"), ("traffic light", "car"))
    assert tags(listed)["a.jpg"] == {"traffic light", "car"}


def test_quotes_around_every_cell_say_nothing_about_blanks():
    assert "may be one class or several" in refusal('"image","labels"\n"a.jpg","haze primary"\n"b.jpg","clear"\n')


def test_a_column_of_splits_is_read():
    table = read("fname,labels,is_valid\na.jpg,cat,True\nb.jpg,dog,False\n")
    assert [row.split for row in table.rows] == ["val", "train"]
    table = read("image,label,split\na.jpg,cat,train\nb.jpg,dog,validation\nc.jpg,dog,test\nd.jpg,dog,\n")
    assert [row.split for row in table.rows] == ["train", "val", "test", None]
    assert "splits in column 'split'" in table.understood
    said = refusal("image,label,split\na.jpg,cat,train\nb.jpg,dog,later\n")
    assert said == "labels.csv line 3 has 'later' in the column 'split', expected train, val or test; correct it"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("image,cat,dog\na.jpg,0.3,0.7\nb.jpg,0.1,0.9\n", "has the columns 'cat', 'dog', and which of them hold"),
        ("image,cat,dog\na.jpg,1,0\nb.jpg,0,2\n", "line 3 has '2' in the column of the class 'dog', expected 1 where"),
        ("image,breed,colour\na.jpg,pug,red\nb.jpg,cat,red\n", "which of them hold classes is not clear (line 2: a"),
        ("image,cat,dog,note\na.jpg,1,0,hm\nb.jpg,0,1,ha\n", "has the columns 'cat', 'dog', 'note', and which"),
        ("image,cat,cat\na.jpg,1,0\n", "has two columns 'cat'; rename one"),
        ("a.jpg,1,0\nb.jpg,0,1\n", "line 1 holds 1 after the file name and the table has no header"),
        ("image,labels\na.jpg,cat|dog\nb.jpg,cat;dog\n", "line 3 has ';' in 'cat;dog', but line 2 has '|' in"),
        ("image,labels\na.jpg,\"['cat', 3b]\"\n", "line 2 has \"['cat', 3b]\", which is no list of names; correct it"),
        ("image,labels\na.jpg,cat dog|bird\nb.jpg,cat|dog\n", "line 2 has 'cat dog|bird', which may be one class or"),
        ("image,labels\na.jpg,['cat']\nb.jpg,cat|dog\n", "line 3 has 'cat|dog', but other cells are lists"),
        ("a.jpg,m/a.png,cat\nb.jpg,m/b.png,dog\n", "several columns of file names, for example line 2: b.jpg, m/b.png"),
        ("a.jpg,cat\nb.jpg,c.jpg\n", "line 2 has the file name 'c.jpg' where a class is expected"),
        ("id,label\nzz,cat\nyy,dog\n", "line 3 names no image: yy, dog; write the file name of an image on each row"),
        ("image,cat,\na.jpg,1,1\nb.jpg,0,1\n", "has a column of marks without a name; name each column by its class"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_by_the_row(table, sentence):
    assert sentence in refusal(table)


def test_a_table_in_an_unknown_encoding_is_refused():
    assert "is not UTF-8 (byte 13)" in refusal("image\na.jpg,Köter\n".encode("latin-1"))
    assert "is not UTF-16 (byte 0)" in refusal(b"\xff\xfe\x00")
    assert "holds zero bytes" in refusal("image,label\na.jpg,cat\n".encode("utf-16-le"))


NAMES = st.sampled_from(["cat", "dog", "bird", "t-shirt", "traffic_light", "Köter", "猫", "n01440764"])
TRUTH = st.dictionaries(st.sampled_from([f"{name}.jpg" for name in ON_DISK]), st.sets(NAMES, max_size=4), min_size=1)


def onehot(draw, truth):
    present, absent = draw(st.sampled_from([("1", "0"), ("1.0", "0.0"), ("True", "False"), ("yes", "no"), ("1", "-1")]))
    names = draw(st.permutations(sorted(set().union(*truth.values()))))
    header = [draw(st.sampled_from(["image", "filename", "file", "image_id", "", "path"])), *names]
    return header, [[file, *(present if name in own else absent for name in names)] for file, own in truth.items()]


def columns(draw, truth):
    width = max(map(len, truth.values()))
    header = draw(st.sampled_from([None, ["file", *["label"] * width], ["image", "tags"]]))
    return header, [[file, *sorted(own)] for file, own in truth.items()]


def in_a_cell(draw, truth):
    write = draw(
        st.sampled_from(
            ["|".join, ";".join, ", ".join, "\n".join, repr, json.dumps, lambda own: f"{{{str(own)[1:-1]}}}"]
        )
    )
    header = [draw(st.sampled_from(["image", "fname"])), draw(st.sampled_from(["labels", "tags", "Class"]))]
    return header, [[file, write(sorted(own))] for file, own in truth.items()]


def boxes(draw, truth):
    number = st.integers(0, 900).map(str)
    rows = [[file, name, *(draw(number) for _ in "xywh")] for file, own in truth.items() for name in sorted(own)]
    rows += [[file, "", "", "", "", ""] for file, own in truth.items() if not own]
    return ["image", "class", "xmin", "ymin", "xmax", "ymax"], rows


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), TRUTH, st.sampled_from([onehot, columns, in_a_cell, boxes]))
def test_every_table_that_tools_write_gives_the_tags_that_were_written(data, truth, form):
    if not set().union(*truth.values()):
        return
    header, rows = form(data.draw, truth)
    if header is not None and data.draw(st.booleans()):
        header, rows = ["", *header], [[str(place), *row] for place, row in enumerate(rows)]
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=data.draw(st.sampled_from(",;\t")),
        lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
        quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    writer.writerows([header, *rows] if header is not None else rows)
    table = read(text.getvalue(), encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
    assert tags(table) == truth


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(
    st.binary(max_size=80),
    st.text(max_size=80).map(str.encode),
    st.text(alphabet="ab.jpg,;|\t\n\r\"'[]{}():01- /nanTrue", max_size=120).map(str.encode),
))  # fmt: skip
def test_any_bytes_are_a_table_or_refused_in_a_sentence(content):
    try:
        table = read(b"a.jpg,cat\n" + content)
    except DataError as error:
        said, table = str(error), None
    assert all(name.strip() for row in table.rows for name in row.classes) if table else "\n" not in said
