"""Tables of images with one label each: what is read from CSV and parquet, splits, and errors for wrong tables."""

import csv
import os

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from conftest import assert_refuses, make_tree, names, rows
from sppnet.data.image_files import file_keys, missing_files
from sppnet.data.sources import open_data
from sppnet.data.table_files import read_table
from sppnet.data.table_images import unsplit_table

COUNTS = {"a": 10, "b": 13, "c": 7}


@pytest.fixture
def photos(tmp_path):
    """A folder with images of three classes, and tables of them in any form."""
    return make_tree(tmp_path / "photos", COUNTS)


def listed(photos):
    """Returns (path, label) of every image."""
    return [(f"{name}/image_{i}.jpg", name) for name, count in COUNTS.items() for i in range(count)]


def write(file, text, encoding="utf-8"):
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return str(file)


def write_rows(file, found, header=("path", "label"), **options):
    with file.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as opened:
        csv.writer(opened, **options).writerows([header, *found])
    return str(file)


def write_parquet(file, **columns):
    parquet.write_table(pyarrow.table(columns), file)
    return str(file)


# What is read.


def test_a_table_of_class_folders_is_the_data_set_of_the_folders(photos):
    shuffled = np.random.default_rng(0).permutation(listed(photos)).tolist()
    of_table = open_data("table", file=write_rows(photos / "photos.csv", shuffled), val_fraction=0.3, split_seed=5)
    of_folder = open_data("folder", root=str(photos), val_fraction=0.3, split_seed=5)
    for part, expected in zip(of_table[:2], of_folder[:2], strict=True):
        assert rows(part) == rows(expected)
        assert part.fingerprint() == expected.fingerprint()
        assert (part.labels.dtype, part.paths.dtype.kind) == (np.int64, "S")
    assert of_table.classes == of_folder.classes == ("a", "b", "c")
    assert len(open_data("table", file=str(photos / "photos.csv")).val) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "utf-8-sig"},
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"quoting": csv.QUOTE_ALL},
        {"lineterminator": "\n"},
        {"lineterminator": "\r"},
        {"encoding": "utf-8-sig", "delimiter": ";", "quoting": csv.QUOTE_ALL, "lineterminator": "\r\n"},
    ],
    ids=str,
)
def test_every_form_of_csv_is_read(photos, options):
    expected = open_data("table", file=write_rows(photos / "plain.csv", listed(photos)))
    found = open_data("table", file=write_rows(photos / "other.csv", listed(photos), **options))
    assert (rows(found.train), rows(found.val)) == (rows(expected.train), rows(expected.val))


def test_spaces_blank_lines_and_further_columns_are_left_out(photos):
    text = (
        'id, label ,path\n\n1, "a", a/image_0.jpg\n2,b,./b//image_1.jpg\n\n,b,b/./image_2.jpg \n4,a,a/image_3.jpg\n\n'
    )
    images, nothing = unsplit_table(file=write(photos / "photos.txt", text))
    found = [(0, "a/image_0.jpg"), (0, "a/image_3.jpg"), (1, "b/image_1.jpg"), (1, "b/image_2.jpg")]
    assert [(label, name) for _, label, name in rows(images)] == found
    assert [content.decode() for content, *_ in rows(images)] == [name for _, name in found]
    assert (images.classes, len(nothing), nothing.classes) == (("a", "b"), 0, ("a", "b"))


def test_names_with_commas_quotes_newlines_and_any_bytes(tmp_path):
    odd = ["a,b.jpg", 'say "hi".jpg', "two\nlines.jpg", "grün 猫.jpg", os.fsdecode(b"caf\xe9.jpg")]
    for name in odd:
        (tmp_path / name).write_bytes(os.fsencode(name))
    (tmp_path / "table.csv").write_bytes(
        b"path,label\n" + b"".join(b'"%b",x\n' % os.fsencode(name).replace(b'"', b'""') for name in odd)
    )
    images, _ = unsplit_table(file=str(tmp_path / "table.csv"))
    assert sorted(names(images)) == sorted(odd)
    assert all(images.read(i) == os.fsencode(images.name(i)) for i in range(len(odd)))


def test_paths_are_from_the_folder_of_the_file_from_root_or_absolute(photos, tmp_path):
    (tmp_path / "lists").mkdir()
    found = [("a/image_0.jpg", "x"), (str(photos / "b" / "image_1.jpg"), "x")]
    images, _ = unsplit_table(file=write_rows(tmp_path / "lists" / "t.csv", found), root=str(photos))
    assert {content.decode() for content, *_ in rows(images)} == {"a/image_0.jpg", "b/image_1.jpg"}
    up = [("../photos/a/image_0.jpg", "x")]
    images, _ = unsplit_table(file=write_rows(tmp_path / "lists" / "up.csv", up))
    assert images.read(0) == b"a/image_0.jpg"


def test_a_file_without_a_folder_is_in_the_current_folder(photos, monkeypatch):
    write_rows(photos / "photos.csv", listed(photos))
    monkeypatch.chdir(photos)
    assert open_data("table", file="photos.csv").train.read(0).startswith(b"a/image_")


def test_parquet_has_text_numbers_or_categories(photos):
    paths, labels = (list(column) for column in zip(*listed(photos), strict=True))
    expected = open_data("table", file=write_rows(photos / "photos.csv", listed(photos)))
    for kind, column in {
        "text": pyarrow.array(labels),
        "large": pyarrow.array(labels, pyarrow.large_string()),
        "views": pyarrow.array(labels, pyarrow.string_view()),
        "spaces": pyarrow.array([f" {label}" if i % 2 else label for i, label in enumerate(labels)]),
        "categories": pyarrow.array(labels).dictionary_encode(),
        "large categories": pyarrow.array(labels, pyarrow.large_string()).dictionary_encode(),
    }.items():
        file = write_parquet(photos / f"{kind}.pq", path=paths, label=column, size=range(len(paths)))
        assert rows(open_data("table", file=file).val) == rows(expected.val), kind
    numbers = write_parquet(photos / "numbers.parquet", path=paths, label=["abc".index(name) for name in labels])
    assert open_data("table", file=numbers).classes == ("0", "1", "2")
    assert open_data("table", file=numbers).val.labels.tolist() == expected.val.labels.tolist()
    flags = write_parquet(photos / "flags.parquet", path=paths, label=[name == "a" for name in labels])
    assert open_data("table", file=flags).classes == ("false", "true")


def test_whole_numbers_are_in_their_own_order_and_other_labels_in_that_of_text(photos):
    found = [(path, str(i % 12)) for i, (path, _) in enumerate(listed(photos))]
    assert open_data("table", file=write_rows(photos / "n.csv", found)).classes == tuple(map(str, range(12)))
    found[0] = (found[0][0], "x")
    text = unsplit_table(file=write_rows(photos / "t.csv", found))[0].classes
    assert text[:4] == ("0", "1", "10", "11")


def test_negative_whole_numbers_are_in_their_own_order(photos):
    labels = ("-10", "-2", "0", "3", "10")
    found = [(path, labels[i % 5]) for i, (path, _) in enumerate(listed(photos))]
    assert unsplit_table(file=write_rows(photos / "t.csv", found))[0].classes == labels
    for other in ("1-2", "-", "--1", "+1", "1.0", "²", "1_0"):  # no whole numbers
        found[0] = (found[0][0], other)
        classes = unsplit_table(file=write_rows(photos / "t.csv", found))[0].classes
        assert classes == tuple(sorted((*labels, other)))


def test_other_names_of_columns(photos):
    found = [(label, path) for path, label in listed(photos)]
    file = write_rows(photos / "photos.csv", found, ("breed", "image"), delimiter=";")
    data = open_data("table", file=file, path_column="image", label_column="breed")
    assert data.classes == ("a", "b", "c")


def test_chosen_classes_have_the_same_images_in_the_same_parts(photos):
    file = write_rows(photos / "photos.csv", [*listed(photos), ("a/alone.jpg", "alone")])
    (photos / "a" / "alone.jpg").touch()
    assert_refuses("photos.csv:32: found one image of alone, expected two or more to split", "table", file=file)
    data = open_data("table", file=file, classes=["c", "a"])
    (photos / "a" / "alone.jpg").unlink()
    everything = open_data("folder", root=str(photos), classes=["a", "c"])
    assert (rows(data.train), rows(data.val)) == (rows(everything.train), rows(everything.val))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab,;\"' \t日", max_size=4), min_size=1, max_size=9), st.sampled_from(",;\t"))
def test_what_the_csv_module_writes_is_read(tmp_path_factory, values, delimiter):
    file = tmp_path_factory.getbasetemp() / "table.csv"
    found = [(f"{i}.jpg", value) for i, value in enumerate(values)]
    table = read_table(write_rows(file, found, delimiter=delimiter), "path", {"label_column": "label"})
    codes, different = table.columns["label"]
    assert [different[code] for code in codes] == [value.strip() for value in values]
    assert table.paths.tolist() == [path.encode() for path, _ in found]
    assert table.numbers.tolist() == list(range(2, len(values) + 2))


# Parts.


def test_a_column_says_which_images_are_for_validation(photos):
    found = [(path, label, "valid" if i % 3 else "Train") for i, (path, label) in enumerate(listed(photos))]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "part"))
    data = open_data("table", file=file, split_column="part")
    assert sorted(names(data.train)) == sorted(path for path, _, part in found if part == "Train")
    assert sorted(names(data.val)) == sorted(path for path, _, part in found if part == "valid")


def test_a_column_split_that_is_not_used_is_named(photos, recwarn):
    found = [(path, label, "train") for path, label in listed(photos)]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "Split"))
    assert len(open_data("table", file=file, val_fraction=0.2).val) == 6
    unsplit_table(file=file)
    assert not recwarn
    open_data("table", file=file)
    line = "photos.csv: images are split at random, and its column Split is not used; data.split_column=Split uses it"
    assert [str(warning.message).rpartition("/")[2] for warning in recwarn] == [line]


def test_text_in_a_file_named_parquet_is_refused(photos):
    file = write(photos / "fake.parquet", HEADER + GOOD)
    assert_refuses(
        "fake.parquet: is not a parquet file, as its name says; CSV files are named .csv$", "table", file=file
    )


def test_val_is_used_before_test_with_a_warning(photos):
    parts = ("train", "test", "val", "train")
    found = [(path, label, parts[i % 4]) for i, (path, label) in enumerate(listed(photos))]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    with pytest.warns(UserWarning, match="validation uses the rows whose split is val, not test$"):
        data = open_data("table", file=file, split_column="split")
    assert set(names(data.val)) == {path for path, _, part in found if part == "val"}
    assert len(data.train) == sum(part == "train" for *_, part in found)


def test_another_file_has_the_images_for_validation(photos, tmp_path):
    train = write_rows(photos / "train.csv", listed(photos)[::2])
    val = write_rows(tmp_path / "val.csv", [row for row in listed(photos)[1::2] if row[1] != "b"])
    data = open_data("table", file=train, val_file=val)
    assert sorted(names(data.train)) == sorted(path for path, _ in listed(photos)[::2])
    assert data.val.classes == ("a", "b", "c")
    assert set(data.val.labels.tolist()) == {0, 2}
    assert all(data.classes[label] == name[0] for _, label, name in rows(data.val))
    assert open_data("table", file=train, val_file=val, classes=["c", "b"]).val.classes == ("b", "c")


def test_a_class_of_validation_images_only_is_refused_unless_it_is_left_out(photos):
    found = [
        (path, label, "val" if label == "c" or i % 2 else "train") for i, (path, label) in enumerate(listed(photos))
    ]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    line = r"photos.csv:25: found validation images of c, and no training images; add some, or leave the class out by "
    assert_refuses(line, "table", file=file, split_column="split")
    assert open_data("table", file=file, split_column="split", classes=["a", "b"]).classes == ("a", "b")
    assert_refuses("found no training images", "table", file=file, split_column="split", classes=["c"])


# Wrong tables.


HEADER = "path,label\n"
GOOD = "a/image_0.jpg,x\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "t.csv: is empty, expected a CSV or parquet file"),
        (HEADER, "t.csv: found no rows below the names of the columns"),
        ("\n\n", "t.csv: found the columns none, expected path_column=path and label_column=label$"),
        ("file,label\n" + GOOD, "t.csv: found the columns file, label, expected path_column=path$"),
        ("path;class\n" + GOOD, "t.csv: found the columns path, class, expected label_column=label$"),
        (GOOD, "t.csv: found the columns a/image_0.jpg, x, expected path_column=path and "),
        ("path,label,label\n", "t.csv: found several columns with the name label, expected one"),
        (HEADER + GOOD + "a/image_1.jpg\n", "t.csv:3: found 1 field, expected 2, as in the first line"),
        (HEADER + GOOD + "a,b.jpg,x\n", "t.csv:3: found 3 fields, expected 2, .*need quotes"),
        (HEADER + GOOD + "\n,x\n,y\n", "t.csv:4: the column path is empty, as in 1 more row$"),
        (HEADER + GOOD + "a/image_1.jpg, \nb/image_1.jpg,\n", "t.csv:3: a/image_1.jpg has no label, as 1 more row$"),
        (
            HEADER + GOOD + "no\\where.jpg,x\nb/none,y\n",
            r"t.csv:3: there is no no\\where.jpg in .*photos \(no file for 2 of 3 rows\); write paths with /",
        ),
        (HEADER + "/no/such.jpg,x\n", r"t.csv:2: there is no /no/such.jpg \(no file for 1 of 1 row\)"),
        (
            HEADER + GOOD + f"{'x' * 300}/a.jpg,x\n",
            r"t.csv:3: there is no x{300}/a.jpg in .*photos \(no file for 1 of 2",
        ),
        (HEADER + GOOD + "a\0b/c.jpg,x\n", r"t.csv:3: there is no a\\x00b/c.jpg in .*photos \(no file for 1 of 2"),
        (HEADER + "a,x\n", r"t.csv:2: there is no a in .*photos \(no file for 1 of 1 row\)"),
        (
            HEADER + GOOD * 2 + "\n" + GOOD,
            r"t.csv:3: found a/image_0.jpg a second time, after .*t.csv:2 \(2 such rows\)",
        ),
        (
            HEADER + GOOD + "b/image_0.jpg,y\n./b/image_0.jpg,z\n" + GOOD,
            r"t.csv:4: found b/image_0.jpg a second time, after .*t.csv:3, as z and as y; data=multilabel takes "
            r"several labels \(2 such rows\)",
        ),
        (HEADER + GOOD + 'a/image_1.jpg,"x\n' + GOOD, "t.csv:4: unexpected end of data; is a quote open, or doubled?"),
        (HEADER + GOOD + 'a/image_1.jpg,"x"y\n', "t.csv:3: ',' expected after '\"'; is a quote open, or doubled?"),
        (HEADER + f"{'x' * 5000},x\n", "t.csv:2: found a path of 5,000 bytes, expected at most 4,096"),
        (HEADER + f"{'x' * 200_000},x\n", r"t.csv:2: field larger than field limit \(131072\); is a quote open"),
        ((HEADER + GOOD).encode("utf-16"), "t.csv: is UTF-16 text, expected UTF-8; save the table as UTF-8"),
        ((HEADER + GOOD + "b/image_0.jpg,café").encode("latin-1"), r"t.csv:3: label is caf\\xe9, expected UTF-8"),
        (b"PK\x03\x04sheet", "t.csv: is a spreadsheet or an archive, expected CSV or parquet; save the table as CSV"),
        (b"\x1f\x8bpacked", "t.csv: is a compressed file, expected CSV or parquet; unpack it"),
        ("file,lable\n" + GOOD, r"expected path_column=path and label_column=label; did you mean lable\?$"),
        (b"PAR1 cut", "t.csv: cannot be read as parquet"),
        (b"\xff\xd8\xff\xe0 image", r"t.csv: found the columns \\xff\\xd8\\xff\\xe0 image, expected path_column=path"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(photos, content, line):
    file = write(photos / "t.csv", content)
    assert_refuses(line, "table", (ValueError, FileNotFoundError), file=file)


def test_a_missing_file_and_a_folder_are_no_tables(photos):
    assert_refuses("nothing.csv: there is no such file", "table", FileNotFoundError, file=str(photos / "nothing.csv"))
    assert_refuses("photos: found a folder, expected a CSV or parquet file", "table", file=str(photos))
    file = write_rows(photos / "photos.csv", listed(photos))
    assert_refuses("none: there is no such folder", "table", FileNotFoundError, file=file, root=str(photos / "none"))


def test_wrong_parts_are_refused(photos):
    found = [(path, label, "train") for path, label in listed(photos)]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    line = "photos.csv: found no row whose split is val; split_column=null splits images at random"
    assert_refuses(line, "table", file=file, split_column="split")
    assert_refuses(
        "photos.csv:2: label is 'a', expected one of train, training", "table", file=file, split_column="label"
    )
    assert_refuses("split_column=split and val_fraction=0.5: must be one of them", "table", file=file,
                   split_column="split", val_fraction=0.5)  # fmt: skip
    assert_refuses("val_fraction=1.0: must be above 0 and below 1", "table", file=file, val_fraction=1.0)
    assert_refuses("expected split_column=part$", "table", file=file, split_column="part")
    line = "photos.csv:2: a/image_0.jpg is among the training images, .*photos.csv:2, and 29 more images"
    assert_refuses(line, "table", file=file, val_file=file)


def spelled(photos):
    """Returns paths that name a/image_1.jpg without being equal to it."""
    (photos / "link").symlink_to(photos / "a")
    return [str(photos / "a" / "image_1.jpg"), "b/../a/image_1.jpg", "link/image_1.jpg", "../photos/a/image_1.jpg"]


def test_an_image_in_two_spellings_is_there_twice(photos):
    for path in spelled(photos):
        found = [*listed(photos), (path, "a")]
        file = write_rows(photos / "t.csv", found)
        line = (
            r"t.csv:32: found .*image_1.jpg a second time, after .*t.csv:3, which names it a/image_1.jpg \(1 such row"
        )
        assert path in assert_refuses(line, file=file, source="table")
        parts = [(*row, "val" if row[0] == path else "train") for row in found]
        file = write_rows(photos / "t.csv", parts, ("path", "label", "split"))
        assert_refuses(line, file=file, source="table", split_column="split")


def test_validation_images_in_another_spelling_are_training_images(photos, tmp_path):
    train = write_rows(photos / "train.csv", listed(photos))
    for path in spelled(photos):
        val = write_rows(tmp_path / "val.csv", [(path, "a")])
        line = "val.csv:2: .*image_1.jpg is among the training images, .*train.csv:3, which names it a/image_1.jpg$"
        assert path in assert_refuses(line, "table", file=train, val_file=val)


def test_images_of_one_name_in_several_folders_are_several(photos):
    (photos / "link").symlink_to(photos / "a")
    found = [(path.replace("a/", "link/"), label) for path, label in listed(photos)]
    assert sorted(names(unsplit_table(file=write_rows(photos / "t.csv", found))[0])) == sorted(p for p, _ in found)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"path": ["a/image_0.jpg"], "label": [0.5]}, "t.parquet: the column label is double, expected text or whole"),
        ({"path": [{"bytes": b"x"}], "label": ["x"]}, "column path is struct.*data=hub reads images that are inside"),
        ({"path": ["a/image_0.jpg", None], "label": ["x", "y"]}, "t.parquet: row 1: the column path is empty"),
        ({"path": ["a/image_0.jpg", "a/image_1.jpg"], "label": ["x", None]}, "row 1: a/image_1.jpg has no label"),
        ({"path": ["a/image_0.jpg", "a/none.jpg"], "label": [1, 2]}, "t.parquet: row 1: there is no a/none.jpg in"),
        (
            {"image": ["a/image_0.jpg"], "label": ["x"]},
            "found the columns image, label, expected path_column=path$",
        ),
        ({"path": ["x" * 5000], "label": ["x"]}, "t.parquet: found a path of 5,000 bytes"),
        ({"path": pyarrow.array([], "string"), "label": pyarrow.array([], "string")}, "t.parquet: found no rows"),
    ],
)
def test_wrong_parquet_files_are_refused_in_one_line(photos, columns, line):
    file = write_parquet(photos / "t.parquet", **columns)
    assert_refuses(line, "table", (ValueError, FileNotFoundError), file=file)


def test_missing_files_are_found_in_any_folder(photos):
    (photos / "link.jpg").symlink_to(photos / "a" / "image_0.jpg")
    (photos / "broken.jpg").symlink_to(photos / "nowhere")
    exist = [b"link.jpg", b"a/image_9.jpg", b"b/../a/image_0.jpg", os.fsencode(photos / "c/image_6.jpg")]
    none = [b"broken.jpg", b"a", b"a/image_10.jpg", b"no/image_0.jpg", b"a/image_0.jpg/x", b"image_0.jpg", b"/x.jpg"]
    paths = np.array([*none[:3], *exist, *none[3:]])
    assert missing_files(str(photos), paths).tolist() == [0, 1, 2, 7, 8, 9, 10]
    assert missing_files(str(photos), paths[3:7]).tolist() == []


def test_paths_of_one_file_have_one_key(photos, monkeypatch):
    (photos / "one" / "deep").mkdir(parents=True)
    (photos / "link").symlink_to("one/deep")
    (photos / "one" / "up").symlink_to("../link")
    monkeypatch.chdir(photos)
    top = os.fsencode(photos)
    paths = [b"x", b"./x", b"a/../x", b"link/../../x", top + b"/x", top + b"//one/deep/../../x", b"one/up/../../x"]
    for root in (str(photos), ".", "", "one/..", str(photos / "link/../..")):
        assert np.unique(file_keys(root, np.array(paths))).tolist() == [top + b"/x"]
    others = [b"link/x", b"one/deep/x", b"one/up/x", b"link/./x", b"one/../link/x", b"link/../deep/x"]
    assert np.unique(file_keys("", np.array(others))).tolist() == [top + b"/one/deep/x"]
    assert file_keys("", np.array([b"/x", b"/../x"])).tolist() == [b"//x", b"//x"]


def test_a_folder_that_cannot_be_is_without_files(photos):
    (photos / "loop").symlink_to("loop")
    (photos / "a" / "loop.jpg").symlink_to("loop.jpg")
    (photos / "a" / "long.jpg").symlink_to("x" * 250 + "/" + "y" * 300)
    long = b"x" * 300
    paths = [b"a/image_0.jpg", long + b"/x.jpg", b"a/" + long, b"loop/x.jpg", b"a/loop.jpg", b"a\0b/x.jpg", b"a/\0.jpg"]
    assert missing_files(str(photos), np.array([*paths, b"a/long.jpg", b"x/" * 3000])).tolist() == list(range(1, 9))


def test_a_path_from_the_top_is_not_looked_for_in_root(photos):
    (photos / "top.jpg").touch()
    assert missing_files(str(photos), np.array([b"/top.jpg", b"top.jpg"])).tolist() == [0]
