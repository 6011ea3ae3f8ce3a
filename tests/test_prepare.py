"""Prepared stores: the same images, every kind of odd file reported, and resuming after an interruption."""

import io
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from conftest import jpeg, rows, started_process
from sppnet.classify.loading import TrainingCrops
from sppnet.data.images import decode_image, resize_shorter_side
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings, _row
from sppnet.data.sources import open_data, without_images
from sppnet.data.survey import no_findings, report_text

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"
SMALL = Settings(short_side=48, quality=95)


def smooth(height, width, seed):
    """uint8 (height, width, 3) without noise, which JPEG changes most."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC))


def saved(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def make_files(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def plain_files(count, height=96, width=131):
    return {
        f"{part}/{name}/{i}.jpg": jpeg(smooth(height, width, seed=[i, len(name), len(part)]))
        for part in ("train", "val")
        for name in ("cat", "horse")
        for i in range(count)
    }


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(smooth(80, 120, 50), exif=exif)


ODD = {
    "train/cat/broken.jpg": b"\xff\xd8 no image",
    "train/cat/png.jpg": saved(smooth(70, 75, 51), "PNG"),
    "train/cat/cmyk.jpg": saved(Image.fromarray(smooth(70, 75, 52)).convert("CMYK")),
    "train/cat/rotated.jpg": rotated(),
    "train/cat/tiny.jpg": jpeg(smooth(11, 130, 53)),
    "train/horse/twice.jpg": jpeg(smooth(96, 131, 54)),
    "train/horse/twice_again.jpg": jpeg(smooth(96, 131, 54)),
    "val/horse/twice.jpg": jpeg(smooth(96, 131, 54)),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with odd files, and the report and the data of the store made of it."""
    place = tmp_path_factory.mktemp("prepared")
    source = open_data("folder", root=str(make_files(place / "images", plain_files(2) | ODD)))
    report = prepare(source, place / "store", SMALL, workers=0)
    return source, report, open_data("prepared", root=str(place / "store"))


def by_name(images):
    return {row[2]: row for row in rows(images)}


def test_a_store_has_the_same_images_names_and_labels(both):
    source, _, stored = both
    assert stored.classes == source.classes
    assert rows(stored.val) == rows(source.val)
    kept = [name for name in by_name(source.train) if name != "train/cat/broken.jpg"]
    assert list(by_name(stored.train)) == kept
    assert [entry[1] for entry in by_name(stored.train).values()] == [
        stored.classes.index(name.split("/")[1]) for name in kept
    ]


def test_training_images_are_the_same_but_small(both):
    source, _, stored = both
    for name, (encoded, _, _) in by_name(stored.train).items():
        original = decode_image(by_name(source.train)[name][0], name)
        image = decode_image(encoded, name)
        expected = resize_shorter_side(original, min(48, *original.shape[1:]))
        assert image.shape == expected.shape
        assert (image.float() - expected.float()).abs().mean() < 2
        assert encoded.startswith(b"\xff\xd8")
    tiny = "train/cat/tiny.jpg"  # nothing to win
    assert by_name(stored.train)[tiny][0] == by_name(source.train)[tiny][0]


@pytest.fixture(scope="module")
def raw(both, tmp_path_factory):
    """The same data in a store of pixels."""
    root = tmp_path_factory.mktemp("raw") / "store"
    prepare(both[0], root, Settings(short_side=48, quality=None), workers=0)
    return open_data("prepared", root=str(root))


def test_a_store_of_pixels_has_the_pixels_of_the_files_at_their_shorter_side(both, raw):
    source, _, _ = both
    originals = by_name(source.train)
    assert [name for name in originals if name != "train/cat/broken.jpg"] == list(by_name(raw.train))
    for name, (encoded, label, _) in by_name(raw.train).items():
        original = decode_image(originals[name][0], name)
        expected = resize_shorter_side(original, 48)  # smaller ones, too
        assert torch.equal(decode_image(encoded, name), expected)
        assert label == originals[name][1]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), expected.permute(1, 2, 0))  # a PPM file
    assert rows(raw.val) == rows(source.val)
    assert raw.fingerprint() not in (source.fingerprint(), both[2].fingerprint())


def test_crops_of_a_store_of_pixels_are_those_of_the_files(both, tmp_path):
    files = {name: content for name, content in (plain_files(3) | ODD).items() if "broken" not in name}
    source = open_data("folder", root=str(make_files(tmp_path / "images", files)))
    prepare(source, tmp_path / "store", Settings(short_side=48, quality=None), workers=0)
    stored = open_data("prepared", root=str(tmp_path / "store"))
    items = [
        [TrainingCrops(data.train, side=42, seed=3)[epoch, index] for epoch in range(3) for index in range(11)]
        for data in (source, stored)
    ]
    for one, two in zip(*items, strict=True):
        assert torch.equal(one["image"], two["image"])


def test_no_batch_of_arrow_exceeds_what_it_can_hold(both, raw, tmp_path, monkeypatch):
    """Arrow refuses 2 GB in a batch: 64 photos of 12 megapixels as pixels."""
    monkeypatch.setattr("sppnet.data.shards._BYTES_PER_BATCH", 20_000)
    prepare(both[0], tmp_path / "store", Settings(48, None), workers=0)
    assert rows(open_data("prepared", root=str(tmp_path / "store")).train) == rows(raw.train)
    for file in tmp_path.glob("store/*/*.arrow"):
        for batch in pa.ipc.open_stream(file.read_bytes()):
            *all_but_last, _ = map(len, batch.column("image").field("bytes").to_pylist())
            assert sum(all_but_last) < 20_000


def test_pixels_that_do_not_fit_on_the_disk_are_refused_before_anything_is_written(both, raw, tmp_path, monkeypatch):
    mean = np.mean([decode_image(raw.train.read(i), "").numel() for i in range(len(raw.train))])
    needed = math.ceil(mean * len(both[0].train))
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=r"store: the training images take about .* GB are free; format=jpeg takes"):
        prepare(both[0], tmp_path / "new" / "store", Settings(48, None), workers=0)
    assert list(tmp_path.iterdir()) == []
    prepare(both[0], tmp_path / "jpeg", Settings(48, 95), workers=0)
    free.free = needed
    prepare(both[0], tmp_path / "store", Settings(48, None), workers=0)


def test_a_store_of_pixels_that_is_half_written_counts_as_space(both, tmp_path, monkeypatch):
    pixels = Settings(48, None)
    prepare(both[0], tmp_path / "store", pixels, workers=0)
    (tmp_path / "store" / "dataset_dict.json").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    prepare(both[0], tmp_path / "store", pixels, workers=0)
    assert len(open_data("prepared", root=str(tmp_path / "store")).train) == 10


def test_the_report_names_odd_files(both):
    _, report, stored = both
    train = report["train"]
    assert (train["images"], report["validation"]["images"]) == (len(stored.train), len(stored.val)) == (10, 5)
    assert train["bytes"] == sum(len(stored.train.read(i)) for i in range(10))
    assert train["misnamed"] == [["train/cat/png.jpg", "is PNG"]]
    assert train["cmyk"] == [["train/cat/cmyk.jpg", ""]]
    assert train["rotated"] == [["train/cat/rotated.jpg", "orientation 6"]]
    assert train["tiny"] == [["train/cat/tiny.jpg", "130x11"]]
    assert train["duplicate"] == [["train/horse/twice_again.jpg", "train/horse/twice.jpg"]]
    ((name, remark),) = train["unreadable"]
    assert name == "train/cat/broken.jpg"
    assert name in remark
    assert report["both"] == [["val/horse/twice.jpg", "train/horse/twice.jpg"]]
    assert report["validation"]["unreadable"] == report["validation"]["duplicate"] == []
    assert "1 validation images are training images, too: val/horse/twice.jpg" in report_text(report)


def test_the_library_reads_it_as_its_own(both, tmp_path):
    hub = pytest.importorskip("datasets")
    root = Path(both[2].train.images.cache_files[0]["filename"]).parents[1]
    splits = hub.load_from_disk(str(root))
    assert splits["train"].features["label"].names == ["cat", "horse"]
    assert splits["validation"][0]["image"].size == (131, 96)
    assert rows(open_data("hub", name=str(root)).train)[3][:2] == rows(both[2].train)[3][:2]
    splits["train"].to_parquet(tmp_path / "some.parquet")
    files = {"train": str(tmp_path / "some.parquet")}
    options = {"train_split": "train", "val_split": "train", "cache": str(tmp_path / "cache")}
    from_parquet = open_data("hub", name="parquet", data_files=files, **options)
    assert rows(from_parquet.val)[3][:2] == rows(both[2].train)[3][:2]


def test_the_fingerprint_is_of_names_labels_and_contents(both, tmp_path):
    source, _, stored = both
    same = open_data("folder", root=source.train.root)
    assert same.fingerprint() == source.fingerprint() != stored.fingerprint()
    assert without_images(same, ["val/cat/0.jpg"]).fingerprint() != same.fingerprint()
    root = Path(stored.train.images.cache_files[0]["filename"]).parents[1]
    assert open_data("prepared", root=str(root)).fingerprint() == stored.fingerprint()


@pytest.mark.slow
def test_unreadable_validation_images_keep_the_store_unfinished_until_they_are_repaired(tmp_path):
    files = plain_files(20)
    root = make_files(tmp_path / "images", files | {"val/cat/3.jpg": b"GIF89a"})
    data = open_data("folder", root=str(root))
    with pytest.raises(ValueError, match=r"^1 validation images cannot be read: val/cat/3.jpg: .*exclude="):
        prepare(data, tmp_path / "store", SMALL, workers=0)
    with pytest.raises(ValueError, match="not a finished one"):
        open_data("prepared", root=str(tmp_path / "store"))
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*.arrow")}
    make_files(root, {"val/cat/3.jpg": files["val/cat/3.jpg"]})
    prepare(data, tmp_path / "store", SMALL, workers=0)
    changed = [file.relative_to(tmp_path / "store") for file in written if file.stat().st_mtime_ns != written[file]]
    assert [str(file) for file in changed] == ["validation/data-00000.arrow"]
    assert rows(open_data("prepared", root=str(tmp_path / "store")).val)[3] == rows(data.val)[3]
    # A finished store is shown, not written again, and never mixed with another.
    store = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*")}
    assert prepare(data, tmp_path / "store", SMALL, workers=0)["train"]["images"] == 40
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*")} == store
    with pytest.raises(ValueError, match="give another out="):
        prepare(data, tmp_path / "store", Settings(short_side=64, quality=95), workers=0)
    with pytest.raises(ValueError, match="found images, store, expected a new folder"):
        prepare(data, tmp_path, SMALL, workers=0)


def test_a_file_that_cannot_be_opened_is_left_out_and_reported(tmp_path):
    root = make_files(tmp_path, plain_files(1))
    os.mkfifo(root / "train/cat/pipe.jpg")
    images = open_data("folder", root=str(root)).train
    facts = no_findings()
    assert [images.name(i) for i in range(2)] == ["train/cat/0.jpg", "train/cat/pipe.jpg"]
    assert _row(images, 1, SMALL, facts) is None
    assert facts["unreadable"] == [["train/cat/pipe.jpg", "train/cat/pipe.jpg: not a regular file"]]


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(tmp_path):
    root = make_files(tmp_path / "images", plain_files(1))
    os.rename(root / "val/cat/0.jpg", os.fsencode(root / "val/cat") + b"/caf\xe9.jpg")
    with pytest.raises(ValueError, match=r"^val/cat/caf\\xe9\.jpg: the name is not UTF-8; rename the file$"):
        prepare(open_data("folder", root=str(root)), tmp_path / "out", SMALL, workers=0)


DEAD = 2**22 + 1  # Linux gives no process a higher number than 2**22


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tmp_path):
    """A data set, a finished store of it, and what the store's files hold."""
    data = open_data("folder", root=str(make_files(tmp_path / "images", plain_files(10))))
    prepare(data, tmp_path / "store", SMALL, workers=0)
    return data, tmp_path / "store", contents(tmp_path / "store")


def test_a_kill_while_the_report_is_written_does_not_block_the_store(finished):
    data, store, before = finished
    (store / "dataset_dict.json").unlink()
    for stale in ("report.json", "dataset_dict.json", "train/data-00000.arrow", "train/data-00001.json"):
        (store / f"{stale}.partial{DEAD}").write_text("{")
    living = store / f"report.json.partial{os.getppid()}"
    living.touch()
    prepare(data, store, SMALL, workers=0)
    living.unlink()
    assert contents(store) == before


@pytest.mark.parametrize("marker", ["finished", "unfinished"])
def test_files_damaged_by_a_power_failure_are_written_again(finished, marker):
    data, store, before = finished
    if marker == "unfinished":
        (store / "dataset_dict.json").unlink()
    size = len(before["train/data-00000.arrow"])
    for name, content in {
        "train/data-00000.arrow": b"",
        "train/data-00001.arrow": before["train/data-00001.arrow"][:-100],
        "validation/data-00000.arrow": bytes(size),  # as XFS leaves what was not flushed
        "validation/data-00001.json": b"",
        "report.json": b"",
    }.items():
        (store / name).write_bytes(content)
    prepare(data, store, SMALL, workers=0)
    assert contents(store) == before
    assert len(open_data("prepared", root=str(store)).train) == 20


def test_a_damaged_store_is_refused_by_name(finished):
    _, store, before = finished
    file = store / "train/data-00001.arrow"
    with pa.ipc.open_stream(before["train/data-00001.arrow"]) as stream, pa.ipc.new_stream(str(file), stream.schema):
        pass  # without any rows it opens
    message = rf"^{store}: found 16 rows of train, report\.json says 20; run the same command of prepare_data\.py again"
    with pytest.raises(ValueError, match=message):
        open_data("prepared", root=str(store))
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{store}: cannot be read \("):
        open_data("prepared", root=str(store))


def test_a_damaged_report_does_not_open_the_store_to_other_data(finished, tmp_path):
    data, store, before = finished
    (store / "report.json").write_bytes(b"")
    with pytest.raises(ValueError, match="holds another data set, or one prepared in another way"):
        prepare(data, store, Settings(short_side=64, quality=95), workers=0)
    assert contents(store) == before | {"report.json": b""}


def test_a_folder_of_images_is_refused_as_a_store(tmp_path):
    data = open_data("folder", root=str(make_files(tmp_path / "images", plain_files(2))))
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "validation")
    before = contents(tmp_path / "images")
    with pytest.raises(ValueError, match=r"found train/cat, train/horse, validation/cat, validation/horse, expected"):
        prepare(data, tmp_path / "images", SMALL, workers=0)
    assert contents(tmp_path / "images") == before


@pytest.mark.parametrize("workers", [-1, 1_000_000])
def test_workers_have_a_limit(both, tmp_path, workers):
    with pytest.raises(ValueError, match=rf"^workers={workers}: must be 0 to \d+ on this machine$"):
        prepare(both[0], tmp_path / "out", SMALL, workers=workers)
    assert not (tmp_path / "out").exists()


def arguments(root, out, *options):
    return ["data=folder", f"data.root={root}", f"out={out}", *options]


@pytest.mark.slow
def test_a_killed_preparation_resumes_and_ends_with_the_same_store(tmp_path, run_here):
    root = make_files(tmp_path / "images", plain_files(24, 480, 640))
    command = [sys.executable, SCRIPT, *arguments(root, tmp_path / "killed", "workers=1")]
    with started_process(command, stdout=subprocess.PIPE) as killed:
        while len(list(tmp_path.glob("killed/train/*.json"))) < 2:
            time.sleep(0.02)
            assert killed.poll() is None
        killed.kill()
        killed.stdout.read()  # until the worker, which could write to it, has ended as well
    finished = sorted(tmp_path.glob("killed/*/*.json"))
    assert not (tmp_path / "killed" / "dataset_dict.json").exists()
    again = run_here("prepare_data", *arguments(root, tmp_path / "killed", "workers=2"), cwd=tmp_path).stdout
    assert f"resuming after {16 * len(finished)} of 96 images" in again
    whole = prepare(open_data("folder", root=str(root)), tmp_path / "whole", Settings(256, 95), workers=0)
    stores = [open_data("prepared", root=str(tmp_path / name)) for name in ("killed", "whole")]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert rows(stores[0].train) == rows(stores[1].train)
    assert whole["train"]["images"] == 48
    assert not list(tmp_path.rglob("*.partial*"))
    shown = run_here("prepare_data", *arguments(root, tmp_path / "killed"), cwd=tmp_path).stdout
    assert "train: 48 images" in shown


def test_an_address_is_refused_as_a_place_for_the_store(tmp_path, run_here):
    done = run_here("prepare_data", "data=shapes", "out=s3://bucket/store", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: out=s3://bucket/store: must be a folder on this machine; docs/data.md says")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(0, 95), "short_side=0: must be at least 1"),
        (Settings(256, 0), "quality=0: must be 1 to 100, or null"),
        (Settings(256, 101), "quality=101: must be 1 to 100, or null"),
    ],
)
def test_settings_out_of_range_are_refused(both, tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        prepare(both[0], tmp_path / "out", settings, workers=0)
    assert not (tmp_path / "out").exists()


def test_excluded_images_are_left_out(tmp_path):
    data = open_data("folder", root=str(make_files(tmp_path, plain_files(2))))
    fewer = without_images(data, ["train/cat/0.jpg", "val/horse/1.jpg"])
    assert (len(fewer.train), len(fewer.val)) == (3, 3)
    assert "train/cat/0.jpg" not in by_name(fewer.train)
    with pytest.raises(ValueError, match=r"exclude=nothing: no image has this name; such a name is train/cat/0\.jpg"):
        without_images(data, ["nothing"])
