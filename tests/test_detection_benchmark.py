"""Both ways compute what detection computes, and run in turn; goals, page and record. No timing is tested."""

import json

import numpy as np
import pytest
import torch

from sppnet.backbones import build_backbone
from sppnet.benchmark import detection, poolings
from sppnet.benchmark.detection import (
    STAGES,
    TOTAL,
    BothWays,
    DetectionSettings,
    DetectionTimes,
    TimedWays,
    fastest_batch,
    propose,
    read_image,
    time_at_scales,
    time_ways,
)
from sppnet.benchmark.detection_report import detection_page, detection_record, goal
from sppnet.benchmark.images import draw_images
from sppnet.benchmark.poolings import TimedPooling, time_pooling
from sppnet.benchmark.references import plain_window_pooling
from sppnet.benchmark.timing import Laps, Ratio
from sppnet.detect.maps import WindowRules, image_maps, pool_windows_at_scales
from sppnet.detect.proposals import Dense
from sppnet.detect.rcnn import warped_features
from sppnet.detect.training import head_of
from sppnet.network import SPPNet
from sppnet.pyramid import pool_windows


def settings(**changes):
    defaults = {"windows": [2000], "scales": [688], "precisions": None, "threads": 1, "image": None}
    return DetectionSettings(**defaults | changes)


@pytest.fixture(scope="module")
def ways():
    torch.manual_seed(0)
    network = SPPNet(build_backbone("zf5", width=0.05), (3, 2, 1), 2, hidden=11, initialization="fan_in").eval()
    return BothWays(network, read_image(settings())[:, :150, :211], WindowRules(scales=(70, 100)), None)


@pytest.fixture(scope="module")
def windows(ways):
    return propose(ways.image, Dense(), "image")[:7]


def test_spp_net_s_way_is_that_of_detection(ways, windows):
    features, seconds = ways.spp(windows)
    assert list(seconds) == [*STAGES, TOTAL]
    assert all(value > 0 for value in seconds.values())
    assert seconds[TOTAL] == pytest.approx(sum(seconds[stage] for stage in STAGES))
    maps, head = image_maps(ways.network, ways.image, (70, 100)), head_of(ways.network, ["fc7"], None)
    with torch.no_grad():
        expected = pool_windows_at_scales(maps, ways.cells(windows), ways.network.pyramid.levels, head)
    assert features.shape == (7, 11)
    assert torch.equal(features, expected)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_r_cnn_s_way_is_the_same_network_on_warped_windows(ways, windows, batch_size):
    features, seconds = ways.rcnn(windows, batch_size)
    assert list(seconds) == [*STAGES, TOTAL]
    assert all(value > 0 for value in seconds.values())
    head = head_of(ways.network, ["fc7"], None)
    assert features.shape == (7, 11)
    torch.testing.assert_close(features, warped_features(ways.network, ways.image, windows, head))


def test_both_ways_run_in_the_same_precision(ways, windows):
    in_bf16 = BothWays(ways.network, ways.image, ways.rules, torch.bfloat16)
    for way, arguments in (("spp", ()), ("rcnn", (4,))):
        exact, rounded = (getattr(one, way)(windows, *arguments)[0] for one in (ways, in_bf16))
        assert not torch.equal(exact, rounded.float())
        torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


def test_the_lap_of_a_stage_is_added_to_it():
    laps = Laps(["a", "b"])
    for stage in ("a", "b", "a"):
        before = laps.seconds[stage]
        laps.end(stage)
        assert laps.seconds[stage] > before


class Noted(BothWays):
    """Notes the order of calls instead of computing anything; the n-th call takes n seconds."""

    def __init__(self, ways):
        super().__init__(ways.network, ways.image, ways.rules, None)
        object.__setattr__(self, "calls", [])

    def spp(self, windows):
        self.calls.append("spp")
        return None, dict.fromkeys([*STAGES, TOTAL], float(len(self.calls)))

    def rcnn(self, windows, batch_size):
        self.calls.append((len(windows), batch_size))
        return None, {TOTAL: {16: 4.0, 32: 2.0, 64: 3.0, 128: 5.0}.get(batch_size, 1.0)}


def test_r_cnn_s_way_runs_between_two_runs_of_spp_net_s(ways, windows):
    noted = Noted(ways)
    timed = time_ways(noted, windows, precision="float32", batch_size=16, rounds=2)
    assert noted.calls == ["spp", *["spp", (7, 16), "spp"] * 2]  # the first to warm up
    assert [seconds[TOTAL] for seconds in timed.spp] == [3.0, 6.0]  # of the second and fourth call, fifth and seventh
    assert timed.ratio(TOTAL) == Ratio([4 / 3, 4 / 6], 4.5, 4.0)
    assert (timed.windows, timed.different) == (7, len(ways.cells(windows)))


def test_r_cnn_s_way_runs_once_per_round_for_all_scales(ways, windows):
    noted = [Noted(ways), Noted(ways)]
    timed = time_at_scales(noted, windows, precision="float32", batch_size=16, rounds=2)
    assert noted[0].calls == ["spp", *["spp", (7, 16), "spp"] * 2]
    assert noted[1].calls == ["spp", *["spp", "spp"] * 2]
    assert [seconds[TOTAL] for seconds in timed[1].spp] == [2.5, 4.5]
    assert [one.rcnn for one in timed] == 2 * [2 * [{TOTAL: 4.0}]]


def test_r_cnn_s_way_has_its_fastest_batches(ways):
    noted, many = Noted(ways), np.zeros((200, 4), np.int64)
    assert fastest_batch(noted, many) == 32
    assert noted.calls == [(16, 16), *((128, size) for size in (16, 32, 64, 128))]
    assert fastest_batch(noted, many[:7]) == 7


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3), (1,)])
def test_plain_pooling_is_the_pooling_of_windows(levels):
    maps = torch.randn(2, 3, 13, 11)
    windows = torch.tensor([[0, 0, 0, 11, 13], [1, 2, 3, 9, 10], [1, 10, 12, 11, 13], [0, 3, 0, 4, 7]])
    assert torch.equal(plain_window_pooling(maps, windows, levels), pool_windows(maps, windows, levels))


def test_all_three_poolings_get_the_same_windows(ways, monkeypatch):
    compared = []

    def noted(ours, reference, rounds, seconds):
        compared.append((ours(), reference()))
        return Ratio([1.0], 1.0, 1.0)

    monkeypatch.setattr(poolings, "compare", noted)
    many = propose(ways.image, Dense(), "image")
    timed = list(time_pooling(ways.poolings(many), rounds=1, seconds=0.1))
    assert [one.windows for one in timed] == [8, 16, 32]  # a map of 3 x 5 cells has 90 windows
    assert [len(ours) for ours, _ in compared] == [8, 8, 16, 16, 32, 32]
    for ours, reference in compared:
        assert torch.equal(ours.float(), reference.float())


def made_ways(windows=2000, precision="float32", ratio=30.0):
    seconds = dict.fromkeys([*STAGES, TOTAL], 0.5)
    slower = [{stage: ratio * value for stage, value in seconds.items()}]
    return TimedWays(windows, 1300, precision, 64, [seconds], slower)


def test_goals_are_for_one_thread_of_a_cpu_and_two_thousand_windows(monkeypatch):
    monkeypatch.setattr(detection, "core_count", lambda: 4)
    assert goal(settings(), made_ways(), TOTAL, "cpu") == 20
    assert goal(settings(), made_ways(precision="bf16"), TOTAL, "cpu") == 45
    assert goal(settings(), made_ways(1995), "convolutions", "cpu") == 100
    five = settings(scales=[480, 576, 688, 864, 1200])
    assert goal(five, made_ways(), "convolutions", "cpu") == 19
    for other in (
        goal(five, made_ways(), TOTAL, "cpu"),
        goal(settings(scales=[600]), made_ways(), TOTAL, "cpu"),
        goal(settings(), made_ways(200), TOTAL, "cpu"),
        goal(settings(threads=4), made_ways(), TOTAL, "cpu"),
        goal(settings(), made_ways(), TOTAL, "cuda"),
        goal(settings(), made_ways(), "fully connected", "cpu"),
    ):
        assert other is None


def test_the_page_has_times_ratios_and_goals():
    pooled = TimedPooling(32, Ratio([2.5], 0.004, 0.01), Ratio([3.5], 0.004, 0.014))
    times = DetectionTimes("cpu", [made_ways(), made_ways(200)], [pooled])
    page = detection_page("title", settings(windows=[2000, 200]), times).markdown()
    lines = [" ".join(line.replace("|", " ").split()) for line in page.splitlines()]
    assert "2,000 float32 SPP-net 0.5 0.5 0.5 0.5 0.5" in lines
    assert "200 float32 R-CNN, 64 at once 15 15 15 15 15" in lines
    assert "2,000 float32 convolutions 30.0 30.0 to 30.0 100 no" in lines
    assert "2,000 float32 total 30.0 30.0 to 30.0 20 yes" in lines
    assert "200 float32 total 30.0 30.0 to 30.0" in lines
    assert "32 4.0 2.50 2.50 to 2.50 3.50 3.50 to 3.50" in lines
    assert "1,300 of 2,000; 1,300 of 200" in page
    assert json.dumps(detection_record(settings(), times))


def test_the_command_measures_an_image(tmp_path, run_here):
    image = draw_images(tmp_path / "images", 1, 120, 160) / "train" / "class0" / "0.jpg"
    small = [
        "backbone.width=0.05",
        "hidden=16",
        "trainer=cpu",
        "rounds=1",
        "seconds=0.001",
        f"image={image}",
        "proposals.windows=20",
    ]
    measured = ["windows=[7,13]", "scales=[70,100]", "precisions=[float32,bf16]"]
    threads = torch.get_num_threads()
    done = run_here("benchmark", "detection", *small, *measured, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.get_num_threads() == threads
    record = json.loads(done.stdout)
    assert [(one["windows"], one["precision"]) for one in record["ways"]] == [
        (7, "float32"), (13, "float32"), (7, "bf16"), (13, "bf16")
    ]  # fmt: skip
    for one in record["ways"]:
        assert set(one["ratios"]) == {*STAGES, TOTAL}
        assert all(ratio["ratio"] > 0 for ratio in one["ratios"].values())
    assert record["hardware"]
    assert record["config"]["scales"] == [70, 100]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
