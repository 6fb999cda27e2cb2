"""A user's own photographs: tables of labels, sub-folders of classes, masks beside them, and splits."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_core.errors import ConfigError, DataError
from toco_core.palette import VOC_PALETTE, save_mask
from toco_train.config import DataConfig
from toco_train.data.classes import read_classes, write_classes
from toco_train.data.opening import open_source
from toco_train.data.source import Sample, read_mask, with_masks
from toco_train.data.splitting import SplitRule, split

MAGNETIC_TILES = Path(__file__).parents[4] / "shared" / "data" / "magnetic-tiles"


def opened(path, **settings):
    return open_source(DataConfig(path=str(path), **settings), seed=0)


def labels_of(source):
    return {sample.name: sample.labels for sample in sorted(source.train + source.val, key=lambda s: s.name)}


@pytest.fixture
def tiles(tmp_path):
    """Six tiles photographed twice each: four with a crack (masks beside two), and eight with nothing."""
    for folder, tile in (("Crack", 0), ("Crack", 1), ("Free", 2), ("Free", 3), ("Free", 4), ("Free", 5)):
        for photograph in (1, 2):
            path = tmp_path / "tiles" / folder / f"exp{photograph}_num_{tile}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 30), 90 + tile).save(path)
    mask = np.zeros((30, 20), dtype=np.uint8)
    mask[:10], mask[10] = 255, 127
    for photograph in (1, 2):
        Image.fromarray(mask).save(tmp_path / "tiles" / "Crack" / f"exp{photograph}_num_0.png")
    return tmp_path / "tiles"


@pytest.fixture
def photos(tmp_path):
    """Six images in images/ and a table of what is in five of them."""
    (tmp_path / "photos" / "images" / "roof").mkdir(parents=True)
    for name in ("a.jpg", "b.JPG", "c.png", "d.jpg", "e.jpg", "roof/a.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / "photos" / "images" / name)
    write(tmp_path / "photos", "file,classes\na.jpg,dog,cat\nb.JPG,cat\nc.png\nd.jpg,dog\nroof/a.jpg,dog\n")
    return tmp_path / "photos"


def write(folder, table, encoding="utf-8"):
    (folder / "labels.csv").write_bytes(table.encode(encoding))


def test_class_folders_give_single_labels_and_the_folder_without_class_gives_none(tiles):
    source = opened(tiles, no_class="Free")
    assert source.kind == "folder"
    assert source.classes == ("Crack",)
    samples = source.train + source.val
    assert len(samples) == 12
    assert {s.labels for s in samples if s.name.startswith("Crack")} == {(1,)}
    assert {s.labels for s in samples if s.name.startswith("Free")} == {()}


def test_a_binary_mask_beside_an_image_is_above_127_and_no_image_itself(tiles):
    source = opened(tiles)
    masked = with_masks(source.train + source.val)
    assert {s.image.suffix for s in source.train + source.val} == {".jpg"}
    assert sorted(s.name for s in masked) == ["Crack/exp1_num_0", "Crack/exp2_num_0"]
    truth = read_mask(masked[0])
    assert (truth[:10] == 1).all()
    assert (truth[10:] == 0).all()


def test_class_folders_may_have_label_masks_in_masks_which_is_no_class(tiles):
    save_mask(tiles / "masks" / "Crack" / "exp1_num_0.png", np.full((30, 20), 1, dtype=np.uint8))
    save_mask(tiles / "masks" / "stray.png", np.full((30, 20), 1, dtype=np.uint8))
    source = opened(tiles)
    assert source.classes == ("Crack", "Free")
    masked = {s.name: s for s in with_masks(source.train + source.val)}
    assert read_mask(masked["Crack/exp1_num_0"]).all()
    assert not read_mask(masked["Crack/exp2_num_0"]).all()


def test_a_class_list_decides_the_order_of_class_folders(tiles):
    (tiles / "classes.yaml").write_text("classes: [Free, Hole, Crack]")
    source = opened(tiles)
    assert source.classes == ("Free", "Hole", "Crack")
    assert {s.labels for s in source.train + source.val if s.name.startswith("Crack")} == {(3,)}
    (tiles / "classes.yaml").write_text("classes: [Free, Crac]")
    with pytest.raises(DataError, match=r"Crack has the class 'Crack', which classes.yaml does not list.*'Crac'"):
        opened(tiles)


def test_a_table_gives_the_classes_of_each_image_and_a_row_without_any_gives_none(photos):
    source = opened(photos)
    assert source.kind == "folder"
    assert source.classes == ("cat", "dog")
    assert labels_of(source) == {"a": (1, 2), "b": (1,), "c": (), "d": (2,), "roof/a": (2,)}
    assert [path.name for path in source.unlisted] == ["e.jpg"]
    assert "images left out for want of a label: 1" in source.description


@pytest.mark.parametrize(
    ("table", "encoding"),
    [
        ("a.jpg,dog,cat\nb.JPG,cat\nc.png\nd.jpg,dog", "utf-8"),
        ("\r\nfile;class\r\n a.jpg ; dog;cat;;\r\nb.JPG;cat\r\nc.png;\r\n\r\nd.jpg;dog\r\n", "utf-8-sig"),
        ('"a.jpg", "cat",dog\nb.JPG,cat,\nc.png,,\n"d.jpg",dog\n', "utf-8"),
        ("name\tclass\na.jpg\tdog\na.jpg\tcat\na.jpg\tcat\nb.JPG\tcat\nc.png\nd.jpg\tdog\n", "utf-8"),
        ("file,1,2\nd.jpg,dog\nc.png\nb.JPG,cat\na.jpg,cat,dog", "utf-8"),
    ],
    ids=["no header", "semicolons of Windows", "quotes", "tabs and several rows of a file", "another order"],
)
def test_a_table_says_the_same_however_it_was_saved(photos, table, encoding):
    write(photos, table, encoding)
    assert labels_of(opened(photos)) == {"a": (1, 2), "b": (1,), "c": (), "d": (2,)}


def test_letters_with_accents_match_however_they_are_composed(photos):
    composed, decomposed = (unicodedata.normalize(form, "Köter") for form in ("NFC", "NFD"))
    assert composed != decomposed
    Image.new("RGB", (8, 6)).save(photos / "images" / f"{decomposed}.jpg")
    write(photos, f"{composed}.jpg,{decomposed}\na.jpg,{composed}\n")
    source = opened(photos)
    assert source.classes == (composed,)
    assert labels_of(source) == {"a": (1,), composed: (1,)}


def test_a_class_that_stands_for_nothing_leaves_an_image_without_label(photos):
    write(photos, "a.jpg,none\nb.JPG,cat\nc.png,none,cat\n")
    source = opened(photos, no_class="none")
    assert source.classes == ("cat",)
    assert labels_of(source) == {"a": (), "b": (1,), "c": (1,)}


def test_masks_of_a_table_are_labels_in_masks_or_an_object_beside_its_image(photos):
    save_mask(photos / "masks" / "a.png", np.full((6, 8), 2, dtype=np.uint8))
    save_mask(photos / "masks" / "roof" / "a.png", np.full((6, 8), 255, dtype=np.uint8))
    for name in ("b", "d"):
        Image.new("L", (8, 6), 255).save(photos / "images" / f"{name}.png")
    source = opened(photos)
    masks = {s.name: set(read_mask(s).ravel().tolist()) for s in with_masks(source.train + source.val)}
    assert masks == {"a": {2}, "b": {1}, "d": {2}, "roof/a": {255}}
    assert [path.name for path in source.unlisted] == ["e.jpg"]


def test_a_mask_beside_an_image_of_two_classes_cannot_say_which_and_is_none(photos):
    Image.new("L", (8, 6), 255).save(photos / "images" / "a.png")
    assert with_masks(s for s in opened(photos).train + opened(photos).val if s.name == "a") == ()


def test_a_grey_silhouette_in_masks_is_refused_since_255_means_ignore_there(photos):
    (photos / "masks").mkdir()
    silhouette = np.zeros((6, 8), dtype=np.uint8)
    silhouette[2] = 255
    Image.fromarray(silhouette).save(photos / "masks" / "a.png")
    masked = with_masks(opened(photos).train + opened(photos).val)
    with pytest.raises(DataError, match=r"a\.png holds only 0 and 255, and 255 means ignore here; write the label"):
        read_mask(masked[0])
    silhouette[3] = 1
    Image.fromarray(silhouette).save(photos / "masks" / "a.png")
    assert set(read_mask(masked[0]).ravel().tolist()) == {0, 1, 255}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("file,class\n", "labels.csv names no image; write a file name and its classes on each row"),
        ("", "labels.csv names no image"),
        ("a.jpg,cat\n,dog\n", "labels.csv line 2 names no file, only dog; put the file name first"),
        ('a.jpg,"cat\n', "labels.csv line 1 is not CSV: unexpected end of data; mend its quotes"),
        ("a.jpg,cat\nb.jpg,cat\n", "images/b.jpg is missing, yet the labels name it, did you mean 'b.JPG'?"),
        ("a.jpg\nc.png\n", "labels.csv names a class; write the classes after the file name"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(photos, table, sentence):
    write(photos, table)
    with pytest.raises((DataError, ConfigError), match=re.escape(sentence)) as caught:
        opened(photos)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_utf_8_is_refused(photos):
    write(photos, "a.jpg,Köter\n", "latin-1")
    with pytest.raises(DataError, match=r"labels\.csv is not UTF-8 \(byte 7\); save it in UTF-8"):
        opened(photos)


@pytest.mark.parametrize("other", ["Cat", "CAT", "cat "])
def test_classes_that_differ_by_capitals_are_refused_and_blanks_do_not_count(photos, other):
    write(photos, f"a.jpg,cat\nb.JPG,{other}\n")
    if other.strip() == "cat":
        assert opened(photos).classes == ("cat",)
        return
    with pytest.raises(ConfigError, match=f"the classes '{other}' and 'cat' differ by capitals or blanks at most"):
        opened(photos)


def test_an_unknown_class_is_refused_by_line_with_the_nearest_name(photos):
    (photos / "classes.yaml").write_text("classes: [dog, cat]")
    assert opened(photos).classes == ("dog", "cat")
    write(photos, "file,class\na.jpg,cta\n")
    with pytest.raises(DataError, match=r"line 2 has the class 'cta', which classes\.yaml does not list.*'cat'"):
        opened(photos)


def test_two_images_of_one_stem_are_refused(photos):
    Image.new("RGB", (8, 6)).save(photos / "images" / "a.webp")
    write(photos, "a.jpg,cat\na.webp,cat\n")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.webp differ by their suffix alone; rename one"):
        opened(photos)


def test_a_class_list_that_was_worked_out_is_written_and_read_back_with_its_colours(photos, tmp_path):
    write_classes(tmp_path / "classes.yaml", opened(photos).class_list)
    again = read_classes(tmp_path)
    assert again.classes == ("cat", "dog")
    assert again.palette == tuple(map(tuple, VOC_PALETTE[:3].tolist()))
    (photos / "classes.yaml").write_text("classes: [cat, dog]\npalette: [[0, 0, 0], [1, 2, 3], [4, 5, 6]]")
    assert opened(photos).class_list.colours == ((0, 0, 0), (1, 2, 3), (4, 5, 6))


def test_photographs_of_one_thing_stay_in_one_split(tiles):
    source = opened(tiles, no_class="Free", group_by=r"exp\d_num_(\d+)", val_fraction=0.4)

    def tile(sample):
        return sample.name.rpartition("_")[2]

    assert source.val
    assert {tile(s) for s in source.train}.isdisjoint({tile(s) for s in source.val})
    assert {s.labels for s in source.train} == {(1,), ()} == {s.labels for s in source.val}


def test_a_split_is_the_same_for_a_seed_and_another_for_another_seed(tiles):
    def val(seed):
        return open_source(DataConfig(path=str(tiles), no_class="Free", val_fraction=0.4), seed=seed).val

    assert val(0) == val(0)
    assert any(val(0) != val(seed) for seed in range(1, 6))


def sample(name, *labels):
    return Sample(name=name, image=Path(f"{name}.jpg"), labels=labels)


def test_a_split_holds_back_a_share_of_every_class_the_rare_ones_too():
    common = [sample(f"dog{i}", 1) for i in range(20)]
    both = [sample(f"both{i}", 1, 2) for i in range(4)]
    nothing = [sample(f"nothing{i}") for i in range(10)]
    for seed in range(5):
        train, val = split([*common, *both, *nothing], SplitRule(0.2, None, seed))
        assert len(train) + len(val) == 34
        assert [sum(s.name.startswith(kind) for s in val) for kind in ("dog", "both", "nothing")] == [4, 1, 2]


def test_a_group_goes_whole_and_counts_for_the_rarest_class_in_it():
    rare, common = "ab", "cdefgh"
    samples = [sample(f"{thing}-{view}", *labels) for thing in rare for view, labels in enumerate([(1, 2), (), (1,)])]
    samples += [sample(f"{thing}-{view}", 1) for thing in common for view in range(3)]
    for seed in range(12):
        train, val = split(samples, SplitRule(0.5, r"^(.)-", seed))
        things = [{s.name[0] for s in half} for half in (train, val)]
        assert [len(half & set(rare)) for half in things] == [1, 1]
        assert [len(half & set(common)) for half in things] == [3, 3]
        assert [s.name for s in train] == sorted(s.name for s in train), "in the order given"


def test_a_class_seen_on_one_thing_alone_is_trained_on():
    train, val = split([sample("a1", 1), sample("a2", 1)], SplitRule(0.9, "^(.)", 0))
    assert len(train) == 2
    assert val == ()


@pytest.mark.skipif(not MAGNETIC_TILES.is_dir(), reason="the magnetic tiles are not here")
def test_real_tiles_open_with_five_classes_and_photographs_of_nothing():
    source = opened(MAGNETIC_TILES, no_class="Free", group_by=r"num_(\d+)")
    assert source.classes == ("Blowhole", "Break", "Crack", "Fray", "Uneven")
    samples = source.train + source.val
    assert len(samples) == 432
    assert sum(not s.labels for s in samples) == 146
    assert len(with_masks(samples)) == 432
    tiles = [{s.name.rpartition("_")[2] for s in half} for half in (source.train, source.val)]
    assert tiles[0].isdisjoint(tiles[1])
    assert {label for s in source.val for label in s.labels} == {1, 2, 3, 4, 5}
    assert set(np.unique(read_mask(next(s for s in source.val if s.labels == (4,))))) == {0, 4}
