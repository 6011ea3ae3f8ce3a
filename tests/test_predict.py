"""Predicting the classes of photos: scores are those of evaluation; files, lines, pages, standard input, resuming."""

import base64
import csv
import io
import json
import re
import subprocess
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from conftest import jpeg, random_images
from sppnet.backbones import build_backbone
from sppnet.classify.evaluator import Evaluation, evaluate
from sppnet.classify.photos import score_photos
from sppnet.classify.scorer import Scorer
from sppnet.classify.views import ViewProtocol
from sppnet.commands.configs import CONFIGS
from sppnet.commands.naming import run_directory
from sppnet.commands.predict import predict
from sppnet.commands.settings import plain, resolved
from sppnet.data.images import decode_image, resize_shorter_side
from sppnet.data.photos import OneImage, find_photos, photos_in
from sppnet.data.sources import content_digests
from sppnet.detect.detector import save_detector
from sppnet.network import SPPNet, load_network, save_network
from sppnet.results.predictions import PredictionLines, is_unsure, prediction_record, prediction_table
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.run_directory import RunDirectory
from test_configs import composed
from test_detect_image import made_detector

PHOTOS = {"a.jpg": (70, 93), "b/<i>.png": (93, 71), "b/c.JPG": (40, 60), "z.jpeg": (1, 1)}
CLASSES = ("cat", "dog", "<owl>")
CPU = ("hardware.accelerator=cpu", "hardware.precision=float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, the run directory of a classifier for crops of 48, and that of a detector."""
    place = tmp_path_factory.mktemp("place")
    images = random_images(list(PHOTOS.values()))
    for index, name in enumerate(PHOTOS):
        (place / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "photos" / name).write_bytes(images.read(index))
    config = composed(
        "recipe=paper", "data=folder", "data.root=images", "backbone.width=0.05", "hidden=8", "sizes.cycle=[48]"
    )
    RunDirectory(place / "run", run_directory(config).config).claim()
    torch.manual_seed(1)
    backbone = build_backbone("zf5", width=0.05)
    network = SPPNet(backbone, [2, 1], 3, hidden=8, initialization="fan_in", input_std=[58.0] * 3, classes=CLASSES)
    with torch.no_grad():
        network.fc8.weight *= 300  # so that images differ in their classes
    save_network(network, place / "run" / "checkpoints" / "last.ckpt")
    nameless = SPPNet(backbone, [2, 1], 3, hidden=8, initialization="fan_in", input_std=[58.0] * 3)
    save_network(nameless, place / "nameless.ckpt")
    save_detector(made_detector("fc7"), place / "detector" / "detectors" / "fc7.ckpt")
    return place


@pytest.fixture(scope="module")
def network(place):
    return load_network(place / "run")


@pytest.fixture(scope="module")
def defaults():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = {views: compose("predict", [*CPU, f"views={views}"]) for views in ("center", "full", "ten_crop")}
        return chosen | {None: compose("predict", list(CPU))}


@pytest.fixture
def run(place, defaults, monkeypatch, capfd):
    """Runs the command on the photos by the classifier of `place`; returns its exit code and its outputs."""
    monkeypatch.chdir(place)

    def run(views="center", **settings):
        code = 0
        try:
            config = {**plain_with_missing(defaults[views]), "run": "run", "images": "photos", **settings}
            predict(resolved(OmegaConf.create(config)))
        except SystemExit as stopped:
            code = stopped.code
        return subprocess.CompletedProcess(["predict"], code, *capfd.readouterr())

    return run


def plain_with_missing(config):
    return {key: plain(value) if OmegaConf.is_config(value) else value for key, value in items(config)}


def items(config):
    return [(key, None if OmegaConf.is_missing(config, key) else config[key]) for key in config]


def reference(place, network, name):
    """The probabilities of the centre crop of 48 x 48 at shorter side 55, in plain PyTorch."""
    image = resize_shorter_side(decode_image((place / "photos" / name).read_bytes(), name), 55)
    top, left = (image.shape[1] - 48) // 2, (image.shape[2] - 48) // 2
    crop = image[:, top : top + 48, left : left + 48].float()[None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.input_mean, network.input_std))
    return network((crop - mean) / std).softmax(dim=1)[0].detach()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Scores.


def test_predictions_are_those_of_the_network_for_the_centre_crop(place, network, run, tmp_path):
    done = run(out=str(tmp_path / "a.jsonl"), top=3)
    assert done.returncode == 0, done.stderr
    records = lines_of(tmp_path / "a.jsonl")
    assert [record["image"] for record in records] == list(PHOTOS)
    for record in records:
        expected = reference(place, network, record["image"])
        assert (record["height"], record["width"]) == PHOTOS[record["image"]]
        assert record["prediction"] == CLASSES[int(expected.argmax())] == record["scores"][0]["class"]
        found = [one["score"] for one in record["scores"]]
        assert found == sorted(found, reverse=True)
        for one in record["scores"]:
            assert one["score"] == pytest.approx(float(expected[CLASSES.index(one["class"])]), abs=1e-5)
    assert "4 photos, " in done.stdout
    assert f"written: {tmp_path / 'a.jsonl'}\n" in done.stdout


@pytest.mark.parametrize("levels", [[2, 1], None])
def test_by_default_the_whole_image_is_looked_at_and_without_a_pyramid_its_centre(place, run, tmp_path, levels):
    torch.manual_seed(3)
    side = 48 if levels is None else None
    network = SPPNet(build_backbone("zf5", width=0.05), levels, 3, hidden=8, input_side=side)
    save_network(network, tmp_path / "a.ckpt")
    done = run(None, run=str(tmp_path / "a.ckpt"), crop_side=48, top=3)
    name, words = ("full", "whole image") if levels else ("center", "48 crops (center)")
    assert f"; {name} with crop_side=48: {words} at shorter side 55, float32\n" in done.stdout


@pytest.mark.parametrize("views", ["center", "full", "ten_crop"])
def test_predictions_are_those_of_evaluation(place, network, run, tmp_path, defaults, views):
    run(views=views, out=str(tmp_path / "a.jsonl"), top=3)
    photos = find_photos(str(place / "photos"))
    protocols = {
        "center": ViewProtocol(scales=[55], view_size=48, positions=["center"]),
        "full": ViewProtocol(full_scales=[55]),
        "ten_crop": ViewProtocol(
            scales=[55],
            view_size=48,
            positions=["center", "top_left", "top_right", "bottom_left", "bottom_right"],
            mirrored=True,
        ),
    }
    hardware = Hardware(accelerator="cpu", precision="float32")
    digests = content_digests(photos, "")
    of_evaluation = evaluate(
        Evaluation(network, photos, digests, protocols[views], hardware, tmp_path / "a.parts", {}), views
    )
    for record, scores in zip(lines_of(tmp_path / "a.jsonl"), of_evaluation, strict=True):
        found = {one["class"]: one["score"] for one in record["scores"]}
        assert [found[name] for name in CLASSES] == pytest.approx(scores.tolist(), abs=1e-6)


def test_logits_are_those_before_softmax(place, network, run, tmp_path):
    run(out=str(tmp_path / "a.jsonl"), top=3, scores="logits")
    for record in lines_of(tmp_path / "a.jsonl"):
        found = {one["class"]: one["score"] for one in record["scores"]}
        logits = torch.tensor([found[name] for name in CLASSES])
        assert logits.abs().max() > 0.01
        assert torch.allclose(logits.softmax(0), reference(place, network, record["image"]), atol=1e-5)


def test_logits_of_several_views_are_their_mean(place, network):
    protocol = ViewProtocol(full_scales=[55], mirrored=True)
    photos = find_photos(str(place / "photos" / "a.jpg"))
    image = resize_shorter_side(decode_image(photos.read(0), ""), 55).float()[None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.input_mean, network.input_std))
    logits = [network((side - mean) / std)[0].detach() for side in (image, image.flip(-1))]
    for scorer, expected in (
        (Scorer(network, protocol, pixels=1, logits=True), sum(logits) / 2),
        (Scorer(network, protocol, pixels=1), sum(one.softmax(0) for one in logits) / 2),
    ):
        with closing(score_photos(scorer, photos, threads=1)) as scored:
            assert torch.allclose(next(scored).scores, expected, atol=1e-6)


def test_scores_are_written_as_the_shortest_decimal_that_is_the_same_float():
    scores = np.random.default_rng(0).random(7).astype(np.float32)
    record = prediction_record("a", (1, 2), scores, "abcdefg", top=7, min_score=None)
    assert [np.float32(one["score"]) for one in record["scores"]] == sorted(scores, reverse=True)
    assert max(len(str(one["score"])) for one in record["scores"]) <= 12


def test_of_equal_scores_the_first_class_comes_first():
    scores = np.array([0.01, 0.02] * 20, np.float32)
    record = prediction_record("a", (1, 2), scores, list(map(str, range(40))), top=30, min_score=None)
    assert [int(one["class"]) for one in record["scores"]] == [*range(1, 40, 2), *range(0, 20, 2)]


@pytest.mark.parametrize(("least", "prediction"), [(None, "y"), (0.4, "y"), (0.41, "unsure")])
def test_below_the_least_score_a_prediction_is_unsure_and_its_row_stays(least, prediction):
    scores = np.array([0.25, 0.4], np.float32)
    record = prediction_record("a", (1, 2), scores, ("x", "y"), top=1, min_score=least)
    assert record["prediction"] == prediction
    assert record["scores"] == [{"class": "y", "score": 0.4}]


class CountingScorer(Scorer):
    """A scorer that pretends to be on a GPU, and notes the shapes of its batches."""

    def __init__(self, network, pixels):
        super().__init__(network, ViewProtocol(full_scales=[40]), pixels=pixels)
        self.batches = []

    def __call__(self, batch):
        self.batches.append([tuple(inputs.tensors[0].shape[:2]) for inputs in batch])
        self.device = torch.device("cpu")
        scores = super().__call__(batch)
        self.device = SimpleNamespace(type="cuda")
        return scores


def test_on_a_gpu_photos_of_equal_sizes_are_scored_together_and_come_in_their_order(network, tmp_path):
    sizes = [(40, 50), (60, 40), (40, 50), (40, 50), (60, 40), (40, 41)]
    images = random_images(sizes)
    for index in range(len(sizes)):
        (tmp_path / f"{index}.png").write_bytes(images.read(index))
    (tmp_path / "3a.png").write_bytes(b"damaged")
    photos = find_photos(str(tmp_path))

    grouping = CountingScorer(network, pixels=2 * 60 * 40)
    grouping.device = SimpleNamespace(type="cuda")
    with closing(score_photos(grouping, photos, threads=3)) as scored:
        together = list(scored)
    assert grouping.batches == [[(40, 50)] * 2, [(40, 50)], [(60, 40)] * 2, [(40, 41)]]

    with pytest.MonkeyPatch.context() as patched, closing(score_photos(grouping, photos, threads=1)) as scored:
        patched.setattr("sppnet.classify.photos._GROUPED_BYTES", 3 * 2 * 60 * 40)  # three photos
        grouping.batches.clear()
        assert len(list(scored)) == 7
    assert len(grouping.batches) > 4

    single = Scorer(network, ViewProtocol(full_scales=[40]), pixels=1)
    with closing(score_photos(single, photos, threads=1)) as scored:
        alone = list(scored)
    assert [photo.name for photo in together] == ["0.png", "1.png", "2.png", "3.png", "3a.png", "4.png", "5.png"]
    assert [photo.name for photo in alone] == [photo.name for photo in together]
    assert together[4].error == alone[4].error != ""
    for one, other in zip(together, alone, strict=True):
        if not one.error:
            assert torch.allclose(one.scores, other.scores, atol=1e-6)


def test_reading_ahead_ends_when_it_is_closed(place, network):
    before, threads = threading.active_count(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    photos = find_photos([str(place / "photos" / name) for name in PHOTOS])
    scorer = Scorer(network, ViewProtocol(full_scales=[40]), pixels=1)
    with closing(score_photos(scorer, photos, threads=3)) as scored:
        next(scored)
    assert threading.active_count() == before
    of_another = []
    thread = threading.Thread(target=lambda: of_another.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    torch.set_num_threads(threads)
    assert of_another == [threads + 1]


# Files and lines.


def test_csv_and_parquet_have_a_row_per_photo(run, tmp_path):
    for suffix in ("csv", "json", "jsonl", "parquet"):
        assert run(out=f"{tmp_path / 'a'}.{suffix}", top=2).returncode == 0
    records = lines_of(tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.json").read_text()) == records
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    columns = ["image", "width", "height", "prediction", "class_1", "score_1", "class_2", "score_2", "error"]
    assert list(rows[0]) == table.column_names == columns
    for record, row, of_parquet in zip(records, rows, table.to_pylist(), strict=True):
        expected = {key: record[key] for key in ("image", "width", "height", "prediction")}
        for place, one in enumerate(record["scores"], start=1):
            expected |= {f"class_{place}": one["class"], f"score_{place}": one["score"]}
        assert of_parquet == expected | {"error": None}
        assert row == {key: str(value) for key, value in expected.items()} | {"error": ""}


def test_without_a_file_every_photo_is_a_line(run, tmp_path):
    run(out=str(tmp_path / "a.jsonl"), top=9)
    header, columns, *lines, last = run(top=9).stdout.splitlines()
    assert header.startswith("run: 3 classes, zf5 ")
    assert "center: 48 crops (center) at shorter side 55" in header
    assert columns.split() == ["image", "prediction", "classes", "by", "their", "scores"]
    assert last.startswith("4 photos, ")
    for line, record in zip(lines, lines_of(tmp_path / "a.jsonl"), strict=True):
        name, prediction, scores = re.split(" {2,}", line)
        assert (name, prediction) == (record["image"], record["prediction"])
        assert scores == ", ".join(f"{one['class']} {one['score']:.4f}" for one in record["scores"])


def test_lines_are_as_wide_as_the_longest_name_and_safe_to_print():
    lines = PredictionLines(["a", "b\n\x1b[31m"], ["cat"])
    record = {"image": "b\n\x1b[31m", "prediction": "cat", "scores": [{"class": "cat", "score": 1.0}]}
    assert lines.line(record) == "b\\n\\x1b[31m  cat         cat 1.0000"
    assert lines.line({"image": "a", "error": "a: empty"}) == "a            a: empty"
    assert lines.header().index("prediction") == len("b\\n\\x1b[31m  ")


def one_class(folder):
    save_network(SPPNet(build_backbone("zf5", width=0.05), [1], 1, hidden=2), folder / "one.ckpt")
    return str(folder / "one.ckpt")


def test_a_network_that_is_damaged_predicts_nothing(place, network, run, tmp_path):
    damaged = load_network(place / "run")
    damaged.fc8.bias.data[1] = float("nan")
    save_network(damaged, tmp_path / "a.ckpt")
    done = run(run=str(tmp_path / "a.ckpt"), crop_side=48, out=str(tmp_path / "a.jsonl"), min_score=0.5)
    assert done.returncode == 1
    assert "4 photos, 0 of them unsure" in done.stdout
    for record in lines_of(tmp_path / "a.jsonl"):
        assert set(record) == {"image", "error"}
        assert record["error"] == "its scores are not finite; the network is damaged, or diverged in training"


def test_a_class_that_is_called_unsure_is_not_counted_as_such():
    record = prediction_record("a", (1, 1), np.array([0.75, 0.25], np.float32), ("unsure", "b"), top=1, min_score=0.5)
    assert record["prediction"] == "unsure"
    assert not is_unsure(record, 0.5)
    assert is_unsure(record, 0.8)
    assert not is_unsure({"image": "a", "error": "b"}, 0.8)


def test_classes_without_names_are_numbers(run, tmp_path):
    assert "1 class, " in run(run=one_class(tmp_path), crop_side=48).stdout
    run(run="nameless.ckpt", out=str(tmp_path / "a.jsonl"), crop_side=48)
    for record in lines_of(tmp_path / "a.jsonl"):
        assert sorted(one["class"] for one in record["scores"]) == ["0", "1", "2"]


def test_the_number_of_columns_is_that_of_the_classes_at_most(run, tmp_path):
    run(out=str(tmp_path / "a.csv"), top=100)
    assert (tmp_path / "a.csv").read_text().splitlines()[0].endswith(",class_3,score_3,error")
    assert len(prediction_table(2).columns) == 9


def test_unsure_photos_are_counted(run, tmp_path):
    done = run(out=str(tmp_path / "a.csv"), min_score=0.999)
    assert "4 photos, 4 of them unsure with a score below 0.999, " in done.stdout
    with (tmp_path / "a.csv").open(newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} == {"unsure"}


def test_unreadable_photos_are_rows_with_their_error_and_the_exit_code_is_1(run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(jpeg(np.zeros((40, 50, 3), np.uint8)))
    (tmp_path / "c.png").write_text("<html>")
    done = run(images=str(tmp_path), out=str(tmp_path / "a.csv"), page=str(tmp_path / "a.html"))
    assert done.returncode == 1
    assert done.stderr == "warning: 2 of 3 photos could not be used: a.jpg, c.png\n"
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second, third = csv.DictReader(file)
    assert (first["image"], first["prediction"], first["error"]) == ("a.jpg", "", "the file is empty")
    assert (second["width"], second["height"], second["error"]) == ("50", "40", "")
    assert third["error"].startswith("not an image that can be read")
    html = (tmp_path / "a.html").read_text()
    assert html.count("<img") == 1
    assert "<td>the file is empty</td>" in html
    assert "a.jpg  the file is empty\n" in run(images=str(tmp_path)).stdout


def test_the_page_shows_every_photo_with_its_prediction(run, tmp_path):
    run(page=str(tmp_path / "a.html"), out=str(tmp_path / "a.jsonl"))
    html = (tmp_path / "a.html").read_text()
    assert "<i>" not in html
    assert "<owl>" not in html
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', html)
    for (picture, text), record in zip(shown, lines_of(tmp_path / "a.jsonl"), strict=True):
        best = record["scores"][0]
        start = f"{record['image']}: {best['class']} {best['score']:.3f}"
        assert text.replace("&lt;", "<").replace("&gt;", ">").startswith(start)
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (record["width"], record["height"])


# Photos.


def test_several_places_come_in_their_order_each_file_once(place, monkeypatch):
    monkeypatch.chdir(place)
    photos = find_photos(["photos/z.jpeg", "photos/b", str(place / "photos" / "*.jp*g"), "photos/b/c.JPG"])
    names = [photos.name(index) for index in range(len(photos))]
    absolute = [str(place / "photos" / name) for name in ("a.jpg", "z.jpeg")]
    assert names == ["photos/z.jpeg", "photos/b/<i>.png", "photos/b/c.JPG", *absolute]
    assert photos.read(0) == photos.read(4) == (place / "photos" / "z.jpeg").read_bytes()


@pytest.mark.parametrize("content", [b"a.jpg\nnot there.png\r\n\nb/c.JPG", b"a.jpg\0not there.png\0b/c.JPG\0"])
def test_names_on_standard_input_are_taken_as_they_come(place, monkeypatch, content):
    monkeypatch.chdir(place / "photos")
    photos = photos_in(io.BytesIO(content))
    assert [photos.name(index) for index in range(len(photos))] == ["a.jpg", "not there.png", "b/c.JPG"]
    assert photos.read(2)
    with pytest.raises(ValueError, match=r"^not there\.png: No such file"):
        photos.read(1)


@pytest.mark.parametrize("content", [b"a" * 5000 + b"\nb.jpg", bytes(range(1, 32)) + b"\n\x01\x02", b"\x05\0\x06\0a"])
def test_what_is_neither_names_nor_an_image_is_refused(content):
    with pytest.raises(ValueError, match=r"^images=-: found neither an image that can be read nor names of files"):
        photos_in(io.BytesIO(content))


def test_standard_input_may_be_closed(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match=r"^images=-: standard input is closed$"):
        find_photos("-")


def test_a_path_through_a_link_leads_to_the_same_file_in_a_list(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"right")
    (tmp_path / "here" / "a.jpg").write_bytes(b"wrong")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real" / "deep")
    place = f"{tmp_path}/here/link/../a.jpg"
    assert find_photos(place).read(0) == find_photos([place]).read(0) == b"right"


def test_names_that_begin_as_formats_do_are_names():
    for name in (b"BMW.jpg", b"P5.png", b"P6\n"):
        assert photos_in(io.BytesIO(name)).name(0) == name.decode().strip()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM"])
def test_an_image_on_standard_input_is_one_photo(kind):
    file = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(file, kind)
    photos = photos_in(io.BytesIO(file.getvalue()))
    assert isinstance(photos, OneImage)
    assert (len(photos), photos.name(0)) == (1, "-")
    assert decode_image(photos.read(0), "-").shape == (3, 5, 7)
    assert photos_in(io.BytesIO(file.getvalue())).digest() == photos.digest() != photos_in(io.BytesIO(b"a")).digest()


def test_a_damaged_image_on_standard_input_is_not_taken_for_names():
    assert isinstance(photos_in(io.BytesIO(b"\xff\xd8\xff\xe0 no more\n")), OneImage)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0", b"\r\n"])
def test_an_empty_standard_input_is_refused(content):
    with pytest.raises(ValueError, match=r"^images=-: standard input is empty; pipe the names of files, or an image"):
        photos_in(io.BytesIO(content))


def test_a_terminal_is_not_waited_for():
    terminal = io.BytesIO(b"a.jpg")
    terminal.isatty = lambda: True
    with pytest.raises(ValueError, match=r"^images=-: standard input is a terminal; pipe the names of files"):
        photos_in(terminal)


@pytest.mark.parametrize("change", ["content", "name", "order", "gone"])
def test_the_digest_of_photos_changes_with_their_files(tmp_path, change):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    places = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    before = find_photos(places)
    digest = before.digest()
    assert digest == find_photos(places).digest()
    assert digest != find_photos(str(tmp_path)).digest()  # the same files by other names
    if change == "content":
        (tmp_path / "b.jpg").write_bytes(b"xy")
    elif change == "name":
        places[1] = str((tmp_path / "b.jpg").rename(tmp_path / "c.jpg"))
    elif change == "order":
        places.reverse()
    else:
        (tmp_path / "b.jpg").unlink()
        places.pop()
        assert before.digest() != digest
    assert find_photos(places).digest() != digest


# Resuming, and detectors.


def test_an_interrupted_prediction_resumes_where_it_was(run, place, tmp_path, monkeypatch, capfd):
    out = tmp_path / "a.csv"
    run(out=str(out))
    expected = out.read_bytes()
    out.unlink()
    read = []

    def counting(encoded, name):
        read.append(name)
        if name == "b/c.JPG" and len(read) == 3:
            raise KeyboardInterrupt
        return decode_image(encoded, name)

    monkeypatch.setattr("sppnet.data.photos.decode_image", counting)
    with pytest.raises(KeyboardInterrupt):
        run(out=str(out))
    assert [path.name for path in tmp_path.iterdir()] == [".a.csv.unfinished"]
    capfd.readouterr()
    done = run(out=str(out))
    assert re.search(r"a\.csv: resuming after [12] of 4 photos\n", done.stdout)
    assert read[-2:] == ["b/c.JPG", "z.jpeg"]
    assert out.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    "change",
    [
        *({"top": 1}, {"scores": "logits"}, {"min_score": 0.1}, {"views": "full"}, {"images": "photos/b"}),
        *({"images": ["photos"]}, {"hardware": {"accelerator": "cpu", "precision": "bf16"}}),
    ],
)
def test_another_setting_starts_at_the_first_photo(run, tmp_path, change):
    out = tmp_path / "a.csv"
    run(out=str(out))
    unfinished = tmp_path / ".a.csv.unfinished"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sppnet.commands.photos.atomic_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(out=str(out), page=str(tmp_path / "a.html"))
    assert unfinished.exists()
    done = run(out=str(out), **change)
    assert "resuming" not in done.stdout
    assert (
        f"{out}: starting again, as photos, network or settings are others than those of its rows so far\n"
        in done.stdout
    )
    assert "starting again" not in run(out=str(out)).stdout


def test_a_detector_finds_boxes_by_the_same_command(place, run, tmp_path):
    out = tmp_path / "a.jsonl"
    for detector in ("detector", "detector/detectors/fc7.ckpt"):
        done = run(None, run=detector, out=str(out), page=str(tmp_path / "a.html"), min_score=0.5)
        assert done.returncode == 0, done.stderr
        records = lines_of(out)
        assert [record["image"] for record in records] == list(PHOTOS)
        count = sum(len(record["boxes"]) for record in records)
        assert count
        assert all(box["score"] >= 0.5 for record in records for box in record["boxes"])
        assert f"{count} boxes of score 0.5 or more in 4 photos" in done.stdout


def test_the_command_as_it_is_typed(place, run_here, tmp_path, monkeypatch):
    words = ["run=run", "images=[photos/a.jpg,photos/b]", f"out={tmp_path / 'a.json'}", "views=full", "top=1", *CPU]
    done = run_here("predict", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "a.json").read_text())
    assert [record["image"] for record in records] == ["photos/a.jpg", "photos/b/<i>.png", "photos/b/c.JPG"]
    assert "full: whole image at shorter side 55, float32\n" in done.stdout

    stream = io.BytesIO(b"photos/a.jpg\n")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    done = run_here("predict", "run=run", "images=-", *CPU, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "\nphotos/a.jpg  " in done.stdout
