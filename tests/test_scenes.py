"""The data set `scenes`: boxes that fit the drawn pixels, little overlap, determinism, and VOC's layout."""

import io

import numpy as np
import pytest
from PIL import Image

from conftest import names
from sppnet.data.drawing import CLASSES
from sppnet.data.images import decode_image
from sppnet.data.objects import annotated_files, select_objects
from sppnet.data.scenes import Scenes, _painted, _plan, _scene_size, draw_scene, scenes, write_voc
from sppnet.data.voc_objects import voc_objects
from test_objects import objects_of, rows


@pytest.fixture(scope="module")
def drawn():
    return [draw_scene(0, index) for index in range(40)]


def test_scenes_have_different_sides_and_one_to_four_objects(drawn):
    counts = [len(scene.objects) for scene in drawn]
    assert set(counts) == {1, 2, 3, 4}
    for scene in drawn:
        height, width, channels = scene.pixels.shape
        assert (scene.pixels.dtype, channels) == (np.uint8, 3)
        assert 200 <= min(height, width) < max(height, width) <= 320


def test_no_scene_is_square():
    generator = np.random.default_rng(0)
    assert all(height != width for height, width in (_scene_size(generator) for _ in range(1000)))


def test_the_first_object_goes_through_the_classes(drawn):
    assert [scene.objects.labels[0] for scene in drawn] == [index % 10 for index in range(40)]
    assert {label for scene in drawn for label in scene.objects.labels[1:]} == set(range(10))


def test_objects_are_large_enough_to_classify(drawn):
    sides = np.concatenate([scene.objects.boxes[:, 2:] - scene.objects.boxes[:, :2] for scene in drawn])
    assert 60 <= sides.max(axis=1).min() <= 75
    assert 130 <= sides.max(axis=1).max() <= 180


@pytest.mark.parametrize("index", range(10))
def test_a_box_is_tight_around_the_pixels_that_its_object_changes(index):
    background, objects, noise = _plan(0, index, "train")
    scene = draw_scene(0, index)
    for i, one in enumerate(objects):
        without = _painted(background, objects[:i] + objects[i + 1 :], noise)
        changed = (scene.pixels != without).any(axis=2)
        x0, y0, x1, y1 = scene.objects.boxes[i].astype(int)
        assert one.box == (x0, y0, x1, y1)
        # A pixel at the edge of a mask can be too faint to change a byte: one row or column less is allowed.
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert np.abs(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) - one.box).max() <= 1
        assert not changed[:y0].any()
        assert not changed[y1:].any()
        assert not changed[:, :x0].any()
        assert not changed[:, x1:].any()


def test_objects_hide_nothing_of_each_other_and_boxes_overlap_little():
    for index in range(40):
        _, objects, _ = _plan(1, index, "test")
        assert np.sum([one.pixels for one in objects], axis=0).max() == 1
        for i, one in enumerate(objects):
            for other in objects[:i]:
                shared = np.zeros(one.pixels.shape, int)
                for x0, y0, x1, y1 in (one.box, other.box):
                    shared[y0:y1, x0:x1] += 1
                areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one.box, other.box)]
                assert (shared == 2).sum() <= 0.1 * min(areas)


def test_a_scene_depends_on_seed_split_and_index_only(drawn):
    again = draw_scene(0, 7)
    np.testing.assert_array_equal(again.pixels, drawn[7].pixels)
    assert rows(again.objects) == rows(drawn[7].objects)
    others = [draw_scene(0, 8), draw_scene(1, 7), draw_scene(0, 7, "test")]
    assert all(rows(other.objects) != rows(again.objects) for other in others)
    assert Scenes("train", 3).read(2) == Scenes("train", 99).read(2)


def test_a_file_is_the_scene_but_for_compression(drawn):
    images = Scenes("train", 5)
    decoded = decode_image(images.read(3), images.name(3)).permute(1, 2, 0).numpy()
    assert decoded.shape == drawn[3].pixels.shape
    assert np.abs(decoded.astype(int) - drawn[3].pixels).mean() < 10
    assert rows(images.objects(3)) == rows(drawn[3].objects)


def test_written_in_vocs_layout_the_reader_finds_the_same_images_and_objects(tmp_path):
    splits = [Scenes("train", 12), Scenes("test", 5)]
    for images in splits:
        write_voc(images, tmp_path / "voc", images.split)
    for images, read in zip(splits, voc_objects(root=str(tmp_path / "voc"), train_split="train"), strict=True):
        assert read.classes == CLASSES
        assert names(read) == [f"JPEGImages/{name}" for name in names(images)]
        assert [read.read(i) for i in range(len(read))] == [images.read(i) for i in range(len(images))]
        assert [rows(read.objects(i)) for i in range(len(read))] == [
            rows(images.objects(i)) for i in range(len(images))
        ]


def test_difficult_objects_and_images_without_objects_are_written_too(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PNG")
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(file.getvalue())
    objects = [objects_of(((1.0, 2.0, 30.0, 20.0), 0, True), ((0.5, 0.0, 3.25, 7.0), 1, False)), objects_of()]
    images = annotated_files(str(tmp_path), ["0.png", "1.png"], objects, ("cat", "dog"))
    write_voc(select_objects(images), tmp_path / "voc", "trainval")
    whole = voc_objects(root=str(tmp_path / "voc"), val_fraction=0.5, test_split=None)
    by_name = {images.name(i): rows(images.objects(i)) for images in whole for i in range(len(images))}
    assert by_name == {f"JPEGImages/{i}.png": rows(objects[i]) for i in range(2)}


def test_a_name_that_is_there_or_is_no_image_is_refused(tmp_path):
    write_voc(Scenes("test", 1), tmp_path, "test")
    with pytest.raises(ValueError, match=r"test_00000\.jpg: an image with the name test_00000 is there already"):
        write_voc(Scenes("test", 1), tmp_path, "val")
    with pytest.raises(ValueError, match=r"a\.gif: must be named \.jpg, \.jpeg or \.png"):
        write_voc(annotated_files(str(tmp_path), ["a.gif"], [objects_of()], ("cat",)), tmp_path, "val")


def test_the_data_set_is_drawn_once_and_has_every_class(tmp_path):
    root = tmp_path / "scenes"
    data = scenes(root=str(root), train=10, test=2, seed=3)
    assert data.train.classes == data.test.classes == CLASSES
    assert (len(data.train), len(data.test)) == (10, 2)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    again = scenes(root=str(root), train=10, test=2, seed=3, classes=["dots_row"])
    assert again.train.classes == ("dots_row",)
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
    with pytest.raises(ValueError, match="choose another folder or delete this one"):
        scenes(root=str(root), train=11, test=2, seed=3)
    for counts in ({"train": 9}, {"test": 0}):
        with pytest.raises(ValueError, match="must be at least 10, one per class, and at least 1"):
            scenes(root=str(tmp_path / "none"), **counts)
    assert not (tmp_path / "none").exists()
