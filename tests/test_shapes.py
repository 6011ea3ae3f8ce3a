"""The data set `shapes`: files, sizes, determinism, refusals, and that superficial features do not tell the class."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.shapes import CLASSES, draw_example, generate_shapes


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("data") / "shapes", train=43, val=20)


def test_classes_are_ten_in_order():
    assert len(CLASSES) == 10
    assert list(CLASSES) == sorted(set(CLASSES))


def test_classes_share_a_split_evenly(drawn):
    for split, total in (("train", 43), ("val", 20)):
        counts = [len(list((drawn / split / name).iterdir())) for name in CLASSES]
        assert sum(counts) == total
        assert max(counts) - min(counts) <= 1
        assert sorted(folder.name for folder in (drawn / split).iterdir()) == list(CLASSES)
    assert sorted(path.name for path in drawn.iterdir()) == ["shapes.json", "train", "val"]


def test_files_are_rgb_jpeg_of_many_sizes(drawn):
    sizes = []
    for path in drawn.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.append(image.size)
    assert len(sizes) == 63
    assert len(set(sizes)) > 50
    assert all(100 <= min(size) <= 400 and max(size) <= 2 * min(size) + 1 for size in sizes)
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)
    assert max(min(size) for size in sizes) > 1.5 * min(min(size) for size in sizes)


def test_an_image_depends_on_seed_split_and_index_only(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    one_core = contents(generate_shapes(tmp_path / "one", train=25, val=10))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    five_cores = contents(generate_shapes(tmp_path / "five", train=25, val=10))
    assert one_core == five_cores
    more_of_the_same = contents(drawn)
    assert all(more_of_the_same[name] == encoded for name, encoded in one_core.items() if name.endswith(".jpg"))


def test_no_two_images_are_equal(drawn, tmp_path):
    other_seed = generate_shapes(tmp_path / "shapes", train=10, val=10, seed=1)
    files = [path.read_bytes() for root in (drawn, other_seed) for path in root.rglob("*.jpg")]
    assert len(set(files)) == len(files) == 83


def test_a_second_call_writes_nothing(drawn):
    before = {path: path.stat().st_mtime_ns for path in [drawn, *drawn.rglob("*")]}
    assert generate_shapes(drawn, train=43, val=20) == drawn
    assert {path: path.stat().st_mtime_ns for path in [drawn, *drawn.rglob("*")]} == before


@pytest.mark.parametrize("other", [{"train": 44}, {"val": 21}, {"seed": 1}])
def test_other_settings_are_refused_and_nothing_is_lost(drawn, other):
    before = contents(drawn)
    with pytest.raises(ValueError, match="choose another folder or delete this one") as refusal:
        generate_shapes(drawn, **{"train": 43, "val": 20, **other})
    assert str(drawn) in str(refusal.value)
    assert '"train": 43' in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert contents(drawn) == before


@pytest.mark.parametrize("indent", [None, 2])
def test_images_of_another_version_are_refused(tmp_path, indent):
    settings = {"version": 0, "train": 10, "val": 10, "seed": 0}
    (tmp_path / "shapes.json").write_text(json.dumps(settings, indent=indent))
    with pytest.raises(ValueError, match='"version": 0') as refusal:
        generate_shapes(tmp_path, train=10, val=10)
    assert "\n" not in str(refusal.value)


def test_a_folder_or_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r"holds no readable shapes\.json"):
            generate_shapes(place, train=10, val=10)
    assert contents(tmp_path) == {"notes.txt": b"keep me"}


@pytest.mark.parametrize("counts", [{"train": 9}, {"val": 0}, {"train": -1}])
def test_every_class_needs_an_image(tmp_path, counts):
    with pytest.raises(ValueError, match="at least 10"):
        generate_shapes(tmp_path / "shapes", **counts)
    assert not (tmp_path / "shapes").exists()


def test_a_failure_midway_leaves_nothing(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def save_until_the_disk_is_full(image, path, **options):
        if len(saved) >= 7:
            raise OSError(28, "No space left on device")
        save(image, path, **options)
        saved.append(path)

    monkeypatch.setattr(Image.Image, "save", save_until_the_disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        generate_shapes(tmp_path / "shapes", train=20, val=10)
    assert len(saved) >= 7
    assert list(tmp_path.iterdir()) == []


def test_callers_may_race_for_the_folder(tmp_path):
    root = tmp_path / "not" / "there" / "yet"
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(generate_shapes, root, train=10, val=10) for _ in range(3)]
    assert [call.result() for call in calls] == [root] * 3
    assert [path.name for path in root.parent.iterdir()] == ["yet"]
    assert len(list(root.rglob("*.jpg"))) == 20


def test_a_drawn_example_is_as_in_the_files_but_for_compression(drawn):
    pixels = draw_example(3, np.random.default_rng([0, 1, 13]))
    assert pixels.dtype == np.uint8
    with Image.open(drawn / "val" / CLASSES[3] / "00013.jpg") as image:
        compressed = np.asarray(image)
    assert compressed.shape == pixels.shape
    assert np.abs(compressed.astype(int) - pixels).mean() < 10


def test_neither_colour_nor_size_nor_file_length_tells_the_class(tmp_path):
    root = generate_shapes(tmp_path / "shapes", train=300, val=200)
    train_features, train_labels = superficial_features(root / "train")
    val_features, val_labels = superficial_features(root / "val")
    means = np.stack([train_features[train_labels == label].mean(axis=0) for label in range(len(CLASSES))])
    distances = np.linalg.norm((val_features[:, None] - means) / train_features.std(axis=0), axis=2)
    accuracy = (distances.argmin(axis=1) == val_labels).mean()
    assert accuracy < 0.2  # chance is 0.1, with a standard deviation of 0.02


def superficial_features(split: Path) -> tuple[np.ndarray, np.ndarray]:
    """Per file: mean of R, G, B and their standard deviations, bytes, width, height; and the labels."""
    features, labels = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((split / name).iterdir()):
            with Image.open(path) as image:
                pixels = np.asarray(image, dtype=np.float64)
            colors = [*pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1))]
            features.append([*colors, path.stat().st_size, *pixels.shape[:2]])
            labels.append(label)
    return np.array(features), np.array(labels)
