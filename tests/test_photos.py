"""Photos: which files a place names; what a detector finds in them, in files, a table and a page; unusable files."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from conftest import jpeg, random_images
from sppnet.commands.configs import CONFIGS
from sppnet.commands.detect import detect
from sppnet.commands.detect_photos import find_detector
from sppnet.commands.settings import plain, resolved
from sppnet.data.images import decode_image
from sppnet.data.photos import PhotoFiles, find_photos
from sppnet.detect.detector import detect_image, proposed_windows, save_detector
from sppnet.detect.photos import detect_in_photos
from sppnet.results.photo_boxes import boxes_record
from sppnet.results.photo_page import boxes_picture
from test_detect_image import made_detector

PHOTOS = {"a.jpg": (70, 93), "b/<i>.png": (93, 71), "b/c.JPG": (40, 60), "z.jpeg": (64, 64)}
CPU = ("hardware.accelerator=cpu", "hardware.precision=float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos and the run directory of two detectors."""
    place = tmp_path_factory.mktemp("place")
    images = random_images(list(PHOTOS.values()))
    for index, name in enumerate(PHOTOS):
        (place / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "photos" / name).write_bytes(images.read(index))
    (place / "photos" / ".hidden.jpg").write_bytes(images.read(0))
    (place / "photos" / "notes.txt").write_text("no image")
    save_detector(made_detector("pool5"), place / "run" / "detectors" / "pool5.ckpt")
    save_detector(made_detector("fc7"), place / "run" / "detectors" / "fc7_bb.ckpt")
    return place


@pytest.fixture(scope="module")
def detector():
    return made_detector("fc7")


def expected(place, detector, name, score):
    """What `detect_image` finds in a photo, as rows of a file."""
    image = decode_image((place / "photos" / name).read_bytes(), name)
    return [
        {"class": detector.classes[label], "score": round(value, 4)}
        | {side: round(number, 2) for side, number in zip(("x0", "y0", "x1", "y1"), box, strict=True)}
        for box, label, value in zip(*(v.tolist() for v in detect_image(detector, image, name=name)), strict=True)
        if value >= score
    ]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Files.


def test_a_folder_is_searched_for_images_in_order(place):
    photos = find_photos(str(place / "photos"))
    assert [photos.name(i) for i in range(len(photos))] == sorted(PHOTOS)
    assert photos.read(0) == (place / "photos" / "a.jpg").read_bytes()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.jp*", ["a.jpg", "z.jpeg"]),
        ("photos/*", sorted(PHOTOS)),
        ("photos/**", sorted(PHOTOS)),
        ("photos/**/*.jpg", ["a.jpg"]),
        ("photos/b*/c.JPG", ["b/c.JPG"]),
        ("ph*/a.jpg", ["photos/a.jpg"]),
        ("photos/a.jpg", ["a.jpg"]),
        ("photos/b/../a.jpg", ["a.jpg"]),
        ("photos/notes.txt", ["notes.txt"]),  # named by itself
    ],
)
def test_patterns_and_single_files(place, monkeypatch, pattern, names):
    monkeypatch.chdir(place)
    photos = find_photos(pattern)
    assert [photos.name(i) for i in range(len(photos))] == names
    for i in range(len(photos)):
        assert photos.read(i)


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ("nowhere", FileNotFoundError, "there is no such file or folder, and no file matches"),
        ("nowhere/*/*.jpg", FileNotFoundError, "there is no such file or folder, and no file matches"),
        ("run", ValueError, "no images there, expected files such as .jpg, .jpeg"),
        ("run/**", ValueError, "no images there"),
    ],
)
def test_places_without_images_are_named(place, monkeypatch, pattern, error, words):
    monkeypatch.chdir(place)
    with pytest.raises(error, match=rf"^images={re.escape(pattern)}: {words}"):
        find_photos(pattern)


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is(tmp_path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "b.jpg").write_bytes(b"x")
    assert find_photos(str(tmp_path / "a[1]")).name(0) == "b.jpg"
    assert find_photos(str(tmp_path / "a[1]" / "b.jpg")).name(0) == "b.jpg"


def test_files_whose_names_are_not_text_are_found(tmp_path):
    (tmp_path / b"\xff.jpg".decode(errors="surrogateescape")).write_bytes(b"x")
    photos = find_photos(str(tmp_path))
    assert (photos.name(0), photos.read(0)) == ("\udcff.jpg", b"x")


# Detecting.


def detected(place, detector, threads=1, propose=None, least_score=0.0):
    photos = find_photos(str(place / "photos"))
    propose = propose or partial(proposed_windows, detector)
    options = {"least_score": least_score, "threads": threads, "autocast": None}
    with closing(detect_in_photos(detector, photos, propose, **options)) as arriving:
        return list(arriving)


def test_photos_come_in_their_order_whichever_is_read_first(place, detector):
    later = threading.Event()

    def slow_at_first(image, name):
        if name == "a.jpg":
            assert later.wait(30)
        else:
            later.set()
        return proposed_windows(detector, image, name)

    found = detected(place, detector, threads=3, propose=slow_at_first)
    assert [photo.record["image"] for photo in found] == sorted(PHOTOS)
    for record, _ in found:
        assert record["boxes"] == expected(place, detector, record["image"], 0.0)
        assert (record["height"], record["width"]) == PHOTOS[record["image"]]


def test_errors_of_the_code_are_not_taken_for_those_of_a_photo(place, detector):
    def broken(image, name):
        raise KeyError(name)

    with pytest.raises(KeyError):
        detected(place, detector, propose=broken)


def test_reading_ahead_ends_with_the_photos(place, detector):
    before = set(threading.enumerate())
    photos = PhotoFiles(str(place / "photos"), np.array([b"a.jpg"] * 50))
    options = {"least_score": 0.0, "threads": 2, "autocast": None}
    with closing(detect_in_photos(detector, photos, partial(proposed_windows, detector), **options)) as arriving:
        next(arriving)
    started = set(threading.enumerate()) - before
    for thread in started:
        thread.join(30)
    assert not any(thread.is_alive() for thread in started)


# The command. Most tests do not compose its configuration again, which would take most of the time.


@pytest.fixture(scope="module")
def defaults():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("detect", list(CPU))


@pytest.fixture
def run(place, defaults, monkeypatch, capfd):
    """Runs the command on the photos by the detectors of `place`; returns its exit code and its outputs."""
    monkeypatch.chdir(place)

    def run(**settings):
        code = 0
        try:
            detect(resolved(OmegaConf.create({**plain(defaults), "run": "run", "images": "photos", **settings})))
        except SystemExit as stopped:
            code = stopped.code
        return subprocess.CompletedProcess(["detect"], code, *capfd.readouterr())

    return run


def test_json_lines_hold_every_photo_with_the_boxes_from_the_score_on(place, detector, run, tmp_path):
    out = tmp_path / "made" / "boxes.jsonl"
    done = run(out=str(out), score=0.5)
    assert done.returncode == 0, done.stderr
    lines = lines_of(out)
    assert [line["image"] for line in lines] == sorted(PHOTOS)
    for line in lines:
        assert (line["height"], line["width"]) == PHOTOS[line["image"]]
        assert line["boxes"] == expected(place, detector, line["image"], 0.5)
        assert len(line["boxes"]) < len(expected(place, detector, line["image"], 0.1))
    count = sum(len(line["boxes"]) for line in lines)
    assert count > 4
    assert "row=fc7_bb: the last one of pool5, fc7_bb\n" in done.stdout
    assert f"{count} boxes of score 0.5 or more in 4 photos, " in done.stdout
    assert f"written: {out}\n" in done.stdout


def test_csv_holds_every_box(run, tmp_path):
    for suffix in ("csv", "jsonl"):
        assert run(out=f"{tmp_path / 'boxes'}.{suffix}", row="pool5").returncode == 0
    with (tmp_path / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = lines_of(tmp_path / "boxes.jsonl")
    boxes = [line | box for line in lines for box in line["boxes"]]
    assert len(rows) == len(boxes) > 0
    for row, box in zip(rows, boxes, strict=True):
        assert row.pop("error") == ""
        assert row == {key: str(box[key]) for key in row}


def test_without_a_file_a_table_is_printed(place, detector, run):
    done = run(score=0.5)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert rows[0] == ["image", "class", "score", "x0", "y0", "x1", "y1"]
    found = {name: expected(place, detector, name, 0.5) for name in sorted(PHOTOS)}
    assert rows[2:] == [[name, *map(str, box.values())] for name, boxes in found.items() for box in boxes]
    assert "written" not in done.stdout


def test_photos_without_boxes_are_in_the_table_and_a_lower_score_is_suggested(place, detector, run):
    done = run(score=1e6)
    assert done.stdout.count("| nothing ") == 4
    assert "0 boxes of score 1e+06 or more in 4 photos, " in done.stdout
    highest = max(box["score"] for name in PHOTOS for box in expected(place, detector, name, 0.1))
    assert f"the highest of all scores is {highest:.4f}; a lower score=... shows more\n" in done.stdout


def test_a_page_shows_every_photo_with_its_boxes(place, run, tmp_path):
    done = run(page=f"{tmp_path / 'boxes.html'}", out=f"{tmp_path / 'boxes.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert "boxes of score 0.1 or more in 4 photos" in done.stdout  # the detector has none below
    html = (tmp_path / "boxes.html").read_text()
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', html)
    assert [text.partition(":")[0] for _, text in shown] == ["a.jpg", "b/&lt;i&gt;.png", "b/c.JPG", "z.jpeg"]
    assert "<i>" not in html
    assert not re.search(r'(src|href)="?https?:', html)
    for (jpeg_text, text), line in zip(shown, lines_of(tmp_path / "boxes.jsonl"), strict=True):
        best = line["boxes"][0]
        assert f": {best['class']} {best['score']:.2f}" in text
        picture = Image.open(io.BytesIO(base64.b64decode(jpeg_text)))
        assert picture.size == (line["width"], line["height"])


def test_boxes_are_drawn_in_the_colour_of_their_class_the_highest_score_on_top():
    boxes = np.array([[10, 20, 60, 80], [10, 20, 60, 80], [70, 5, 110, 95]], np.float32)
    scores = np.array([2.5, 1, 0.5], np.float32)
    record = boxes_record("<a>.jpg", (100, 120), ["b", "a", "i"], scores, boxes)
    encoded, text = boxes_picture(torch.full((3, 100, 120), 128, dtype=torch.uint8), record, "abcdefghi")
    assert text == "<a>.jpg: b 2.50, a 1.00, i 0.50"
    picture = np.asarray(Image.open(io.BytesIO(encoded)), int)
    for y, x, color in ((50, 11, (0xB3, 0x47, 0x00)), (60, 71, (0x00, 0x72, 0xB2)), (60, 35, (128, 128, 128))):
        assert np.abs(picture[y, x] - color).max() < 40, (y, x)


def test_the_line_of_a_picture_names_ten_boxes():
    boxes, scores = np.tile(np.array([[1, 1, 9, 9]], np.float32), (12, 1)), np.arange(12, dtype=np.float32)[::-1]
    record = boxes_record("a\n.jpg", (10, 10), ["b"] * 12, scores, boxes)
    _, text = boxes_picture(torch.zeros((3, 10, 10), dtype=torch.uint8), record, ["b"])
    assert text.startswith("a\\n.jpg: b 11.00, b 10.00, ")
    assert text.endswith(", b 2.00 and 2 more")


def test_a_page_has_a_limited_number_of_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sppnet.results.photo_page.MOST_PICTURES", 3)
    assert run(page=f"{tmp_path / 'boxes.html'}").returncode == 0
    html = (tmp_path / "boxes.html").read_text()
    assert html.count("<img") == 3
    assert "The first 3 of 4 photos." in html


def test_unusable_photos_are_named_with_their_error_and_the_others_are_done(run, run_here, place, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg(np.zeros((40, 50, 3), np.uint8)))
    (tmp_path / "photos" / "c.png").write_text("<html>")
    photos, page = str(tmp_path / "photos"), str(tmp_path / "boxes.html")
    words = [f"run={place / 'run'}", f"images={photos}", f"out={tmp_path / 'boxes.jsonl'}", *CPU]
    for done in (
        run_here("detect", *words, cwd=tmp_path),
        run(images=photos, out=str(tmp_path / "boxes.csv"), page=page),
    ):
        assert done.returncode == 1
        assert done.stderr == "warning: 2 of 3 photos could not be used: a.jpg, c.png\n"
    first, second, third = lines_of(tmp_path / "boxes.jsonl")
    assert first == {"image": "a.jpg", "error": "the file is empty"}
    assert (second["image"], second["width"], second["height"]) == ("b.jpg", 50, 40)
    assert third["error"].startswith("not an image that can be read (JPEG, ")
    html = (tmp_path / "boxes.html").read_text()
    assert html.count("<img") == 1
    assert "<td>the file is empty</td>" in html
    lines = (tmp_path / "boxes.csv").read_text().splitlines()
    assert lines[1] == "a.jpg,,,,,,,,,the file is empty"
    assert "| a.jpg | the file is empty " in run(images=photos).stdout


def test_own_windows_of_a_file_are_scored(run, tmp_path):
    boxes = {name: [[1, 2, 30, 35], [10, 5, 40, 33]] for name in sorted(PHOTOS)[:3]}
    lines = [json.dumps({"image": name, "boxes": of_image}) for name, of_image in boxes.items()]
    (tmp_path / "windows.jsonl").write_text("\n".join(lines))
    save_detector(made_detector("fc7", regressed=False), tmp_path / "detector.ckpt")
    done = run(
        run=str(tmp_path / "detector.ckpt"),
        out=str(tmp_path / "boxes.jsonl"),
        proposals={"proposer": "file", "path": str(tmp_path / "windows.jsonl")},
    )
    assert done.returncode == 1
    assert "photos could not be used: z.jpeg\n" in done.stderr
    *found, missing = lines_of(tmp_path / "boxes.jsonl")
    assert missing["error"].endswith("windows.jsonl: found no line for the image z.jpeg")
    given = {tuple(box) for box in boxes["a.jpg"]}
    shown = [tuple(box[side] for side in ("x0", "y0", "x1", "y1")) for line in found for box in line["boxes"]]
    assert shown
    assert set(shown) <= given


def test_an_interrupted_command_leaves_the_old_file_and_resumes(place, run_here, run, tmp_path, monkeypatch):
    out, page = tmp_path / "boxes.csv", tmp_path / "boxes.html"
    out.write_text("before")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sppnet.results.photo_page.boxes_picture", interrupted)
        done = run_here("detect", "run=run", "images=photos", f"out={out}", f"page={page}", *CPU, cwd=place)
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command resumes\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".boxes.csv.unfinished", "boxes.csv"]
    assert out.read_text() == "before"

    assert f"{out}: resuming after 4 of 4 photos\n" in run(out=str(out), page=str(page)).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.csv", "boxes.html"]
    resumed = out.read_bytes()
    run(out=str(out))
    assert out.read_bytes() == resumed


def test_a_detector_that_needs_opencv_says_what_to_install(run, tmp_path, monkeypatch):
    proposals = {"proposer": "edge_boxes", "windows": 9, "opencv": "5.0", "most": 9, "seed": 0}
    save_detector(made_detector("fc7", proposals=proposals), tmp_path / "detector.ckpt")
    for name in ("cv2", "cv2.ximgproc"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"^selective search and EdgeBoxes need .*: pip install sppnet\[detect\]$"):
        run(run=str(tmp_path / "detector.ckpt"))


@pytest.mark.parametrize("row", ["pool5", "fc7_bb"])
def test_a_row_is_chosen_by_its_name(place, row, capsys):
    assert find_detector(place / "run", row) == place / "run" / "detectors" / f"{row}.ckpt"
    assert capsys.readouterr().out == ""
