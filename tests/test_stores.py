"""Stores in Arrow files: the Hub without a network, and and stores of others with wrong contents."""

import pickle
import sys
from hashlib import blake2b

import numpy as np
import pytest

from conftest import assert_refuses, jpeg, names, rows
from sppnet.data.sources import content_digests, open_data

# The Hub, without a network: folders that `load_dataset` reads.


@pytest.fixture
def hub(monkeypatch):
    """The package `datasets`, kept from the network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def saved(hub, tmp_path):
    """A DatasetDict on disk with four images of cats and dogs in train, two in validation."""

    def split(labels):
        files = [jpeg(np.full((4, 5, 3), 40 * i, np.uint8)) for i in range(len(labels))]
        features = hub.Features({"picture": hub.Image(), "kind": hub.ClassLabel(names=["cat", "dog"])})
        return hub.Dataset.from_dict({"picture": [{"bytes": f, "path": None} for f in files], "kind": labels}, features)

    splits = hub.DatasetDict({"train": split([0, 1, 1, 0]), "validation": split([1, 0]), "unlabelled": split([-1, -1])})
    splits.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


COLUMNS = {"image_column": "picture", "label_column": "kind"}


def test_hub_reads_what_save_to_disk_wrote(saved):
    data = open_data("hub", name=saved, **COLUMNS)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert rows(data.train)[2] == (jpeg(np.full((4, 5, 3), 80, np.uint8)), 1, "train/2")
    assert names(data.val) == ["validation/0", "validation/1"]
    assert len(data.val) == 2
    with pytest.raises(IndexError):
        data.val.read(2)
    copy = pickle.loads(pickle.dumps(data.train))
    assert rows(copy) == rows(data.train)


def test_hub_reads_a_folder_of_images_by_load_dataset(hub, tmp_path, image_folder):
    data = open_data("hub", name=str(image_folder), cache=str(tmp_path / "cache"))
    expected = open_data("folder", root=str(image_folder))
    assert data.classes == expected.classes
    assert sorted(row[:2] for row in rows(data.train)) == sorted(row[:2] for row in rows(expected.train))
    assert len(data.val) == len(expected.val)


def test_hub_reads_parquet_and_slices_of_splits(hub, saved, tmp_path):
    (tmp_path / "parquet").mkdir()
    hub.load_from_disk(saved)["train"].to_parquet(tmp_path / "parquet/train.parquet")
    options = COLUMNS | {"name": str(tmp_path / "parquet"), "cache": str(tmp_path / "cache")}
    data = open_data("hub", train_split="train[:3]", val_split="train[3:]", **options)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert rows(data.val)[0][:2] == (jpeg(np.full((4, 5, 3), 120, np.uint8)), 0)
    assert_refuses("Unknown split", "hub", **options)


def test_hub_errors_name_what_was_found(saved, hub, tmp_path):
    assert_refuses("columns picture, kind, expected image$", "hub", name=saved)
    assert_refuses(
        "found the splits train, validation, unlabelled, expected x", "hub", name=saved, val_split="x", **COLUMNS
    )
    assert_refuses("expected Image", "hub", name=saved, image_column="kind", label_column="kind")
    assert_refuses("2 of 2 images without a label", "hub", name=saved, val_split="unlabelled", **COLUMNS)
    hub.load_from_disk(saved)["train"].save_to_disk(tmp_path / "single")
    assert_refuses("expected a saved DatasetDict", "hub", name=str(tmp_path / "single"))
    assert_refuses("nowhere", "hub", name=str(tmp_path / "nowhere"), cache=str(tmp_path))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert_refuses(r"pip install sppnet\[hub\]", "hub", name="any")


# Stores of others: made with `datasets`, but wrong.


def write_store(hub, root, images, labels, names=None, classes=("cat", "dog")):
    """A store in the layout of prepare_data.py; `images` are bytes, paths or None."""
    import pyarrow as pa

    rows = [{"bytes": i, "path": None} if isinstance(i, bytes) else i and {"bytes": None, "path": i} for i in images]
    features = hub.Features(
        {"image": hub.Image(), "label": hub.ClassLabel(names=list(classes)), "name": hub.Value("string")}
    )
    names = [f"{i}.jpg" for i in range(len(images))] if names is None else names
    table = pa.table(
        {
            "image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "label": pa.array(labels, pa.int64()),
            "name": pa.array(names, pa.string()),
        }
    )
    table = table.cast(features.arrow_schema)
    valid = hub.Dataset.from_dict({"image": [{"bytes": PHOTO}], "label": [0], "name": ["a"]}, features)
    hub.DatasetDict({"train": valid, "validation": valid}).save_to_disk(root)
    for file in root.glob("*/*.arrow"):  # not by `datasets`: it would put the files that rows name into the store
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    return str(root)


PHOTO = jpeg(np.full((4, 5, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        ([PHOTO] * 3, [0, 2, 1], None, "train: row 1 has the label 2, expected 0 to 1$"),
        ([PHOTO] * 3, [0, 2**40, 1], None, "train: row 1 has the label 1099511627776, expected 0 to 1$"),
        ([PHOTO] * 3, [0, 1, -1], None, "train: found 1 of 3 images without a label$"),
        ([PHOTO] * 3, [0, 1, None], None, "train: row 2 has no label$"),
        ([PHOTO, None, PHOTO], [0, 1, 0], None, "train: row 1 has no image$"),
        ([PHOTO] * 3, [0, 1, 0], ["a", None, "c"], "train: row 1 has no name$"),
    ],
)
def test_a_store_with_a_wrong_row_is_refused_and_the_row_named(hub, tmp_path, images, labels, names, message):
    root = write_store(hub, tmp_path / "store", images, labels, names)
    assert_refuses(message, "prepared", root=root)
    if names is None:
        assert_refuses(message, "hub", name=root)


@pytest.mark.parametrize("kind", ["absolute", "relative", "link"])
def test_a_store_reads_no_file_outside_of_its_folder(hub, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PHOTO)
    (tmp_path / "store").mkdir()
    named = {"absolute": str(secret), "relative": "../secret.jpg", "link": "link.jpg"}[kind]
    root = write_store(hub, tmp_path / "store", [PHOTO, named], [0, 1])
    (tmp_path / "store/link.jpg").symlink_to(secret)
    for data in (open_data("prepared", root=root), open_data("hub", name=root)):
        assert (data.train.read(0), data.train.labels[0]) == (PHOTO, 0)
        with pytest.raises(ValueError, match=rf"row 1 of train names {named}, outside {root}$"):
            data.train.read(1)


def test_a_store_reads_files_in_its_folder(hub, tmp_path):
    root = write_store(hub, tmp_path / "store", ["files/0.jpg", str(tmp_path / "store/files/0.jpg")], [0, 1])
    (tmp_path / "store/files").mkdir()
    (tmp_path / "store/files/0.jpg").write_bytes(PHOTO)
    data = open_data("prepared", root=root)
    assert rows(data.train) == [(PHOTO, 0, "0.jpg"), (PHOTO, 1, "1.jpg")]


def test_a_table_of_paths_reads_files_beside_it_only(hub, tmp_path):
    import pyarrow.parquet

    (tmp_path / "tables").mkdir()
    for place in (tmp_path, tmp_path / "tables"):
        (place / "photo.jpg").write_bytes(PHOTO)
    root = write_store(hub, tmp_path / "s", [str(tmp_path / "tables/photo.jpg"), str(tmp_path / "photo.jpg")], [0, 1])
    table = hub.load_from_disk(root)["train"].data.table
    pyarrow.parquet.write_table(table, tmp_path / "tables/train.parquet")
    data = open_data(
        "hub",
        name="parquet",
        data_files={"train": str(tmp_path / "tables/*.parquet")},
        val_split="train",
        cache=str(tmp_path / "cache"),
    )
    assert data.train.read(0) == PHOTO
    with pytest.raises(ValueError, match=r"row 1 of train names .*photo\.jpg, outside"):
        data.train.read(1)


@pytest.mark.parametrize("cut", [0, 100, -600])
def test_a_store_with_a_truncated_file_is_refused_by_name(hub, tmp_path, cut):
    root = write_store(hub, tmp_path / "store", [PHOTO] * 3, [0, 1, 0])
    (file,) = (tmp_path / "store/train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:cut])
    assert_refuses(rf"^{root}: cannot be read \(", "prepared", root=root)
    assert_refuses(rf"^{root}: cannot be read \(", "hub", name=root)


def test_remote_stores_name_the_extra_that_reads_them(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # loaded by other tests
    message = r"s3://bucket/imagenet: needs a package for s3:// addresses: pip install sppnet\[remote\]$"
    assert_refuses(message, "prepared", root="s3://bucket/imagenet")
    assert_refuses("Protocol not known: ftps3", "prepared", root="ftps3://bucket/imagenet")


def test_digests_of_a_store_are_of_its_files(saved):
    images = open_data("hub", name=saved, **COLUMNS).train
    assert [digest.tobytes() for digest in content_digests(images, "reading")] == [
        blake2b(images.read(i), digest_size=16).digest() for i in range(4)
    ]
