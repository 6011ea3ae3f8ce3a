"""What is measured side by side: every group runs, goals and bounds are shown, epochs and detection. No timing."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from sppnet.benchmark import comparisons, detection_rows, epochs, side_by_side, steps
from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Row, Works, largest_parts, operations_of
from sppnet.benchmark.detection import STAGES, TOTAL, TimedWays
from sppnet.benchmark.detection_rows import DetectedImage, Ways
from sppnet.benchmark.epochs import PlainEpochs, best_loop, default_loop, small_recipe
from sppnet.benchmark.loading_parts import Parts
from sppnet.benchmark.references_report import references_page, references_record
from sppnet.benchmark.side_by_side import GROUPS, Measured, measure
from sppnet.benchmark.timing import Ratio
from sppnet.commands.configs import CONFIGS


@pytest.fixture
def bench():
    with Bench("cpu", batch_size=1, files=4, hidden=16) as bench:
        bench.workers = 0  # to prepare a store, each would import the libraries for seconds
        yield bench


@pytest.mark.slow
def test_the_cost_of_the_pyramid_is_that_of_a_network_with_it_beside_one_without():
    class Networks(Bench):
        levels = ()

        def network(self, levels=None, compiled=None):
            self.levels += (levels,)
            return super().network(levels, compiled)

    with Networks("cpu", batch_size=1, files=4, hidden=16) as bench:
        steps.pyramid_costs(bench)
        assert bench.levels == ((6, 3, 2, 1), None)  # ours, then what it is compared with


@pytest.mark.parametrize("autocast", [True, False])
def test_a_step_is_compared_with_one_in_the_other_precision(bench, autocast):
    bench.autocast = autocast
    dtypes = []
    network = bench.network()
    bench.network = lambda: network
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, images, maps: dtypes.append(maps.dtype))
    works = steps.precisions(bench)
    works.ours()
    works.reference()
    both = [torch.bfloat16, torch.float32]
    assert dtypes == (both if autocast else both[::-1])


@pytest.mark.slow
def test_a_step_is_compared_with_a_compiled_one_on_a_cpu(bench):
    works = steps.compilations(bench)
    with torch.compiler.set_stance("fail_on_recompile"):
        works.ours()  # eager
        with pytest.raises(RuntimeError, match="recompile"):
            works.reference()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by timm, which leaves them to Python
def test_every_comparison_runs_on_both_sides(monkeypatch, bench):
    for name, value in (("_IMAGES", 914), ("_TRAIN", 306), ("_TEST", 425), ("_LENGTH", 64)):
        monkeypatch.setattr(f"sppnet.benchmark.transfer.{name}", value)
    run = []
    for group in GROUPS.values():
        for each in group(bench):
            slow = ("96 views", "exported ZF-5", "1,600 wide", "eager: compiled")  # they take seconds
            if isinstance(each, Comparison) and not any(name in each.name for name in slow):
                works = each.works()
                for work in (works.ours, works.reference):
                    work()
                    run.append(each.name)
    assert len(run) == 2 * len(set(run)) == 2 * (5 + 14 + 1 + 1 + 2 + 1 + 2)


def test_goals_that_are_missed_are_bounded(monkeypatch):
    monkeypatch.setattr(comparisons, "compare", lambda ours, reference, rounds, seconds: Ratio([reference()], 1, 2))
    monkeypatch.setattr(comparisons, "operations_of", lambda work: f"operations of {work()}")
    missed = partial(Comparison, "a: b", Goal(2.5, None), lambda: Works(lambda: "ours", lambda: 2.0, "tensors"))
    (row,) = missed().rows("cpu", 1, 1)
    assert row == Row("a: b", 2.5, Ratio([2.0], 1, 2), "tensors", "operations of ours")
    assert missed(lambda: "decoding 50 %").rows("cpu", 1, 1)[0].bound == "decoding 50 %"
    assert missed().rows("cuda", 1, 1)[0][1:] == (None, Ratio([2.0], 1, 2), "tensors", "")
    reached = missed()._replace(goal=Goal(2.0, None))
    assert reached.rows("cpu", 1, 1)[0].bound == ""


def test_the_largest_parts_are_named_first():
    assert largest_parts({"a": 1.0, "b": 6.0, "c": 0.0, "d": 3.0}) == "b 60 %, d 30 %, a 10 %"
    assert largest_parts({"a": 1.0, "b": 6.0}, 20.0) == "b 30 %, a 5 %"


def test_the_operations_of_a_work_are_those_that_take_its_time():
    matrix = torch.randn(700, 700)
    assert operations_of(lambda: [matrix @ matrix for _ in range(5)]).startswith("mm ")
    assert operations_of(lambda: sum(range(300_000))).startswith("outside of torch's operations 100 %")


class Fake:
    def __init__(self, name, weight, calls):
        self.name, self.weight, self.calls = name, weight, calls

    def rows(self, device, rounds, seconds):
        self.calls.append((self.name, device, rounds, seconds))
        return [Row(f"{self.name}{i}", None, Ratio([2.0], 1, 2)) for i in range(2)]


def test_groups_are_measured_in_order_with_the_time_that_is_left(monkeypatch, bench):
    calls, lines = [], []
    groups = {"a": lambda bench: [Fake("a", 1, calls)], "b": lambda bench: [], "c": lambda bench: [Fake("c", 3, calls)]}
    monkeypatch.setattr(side_by_side, "GROUPS", groups)
    clock = iter([100.0, 110.0, 140.0])
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: next(clock))
    measured = measure(bench, ["c", "a"], 4, 5.0, lines.append)
    assert calls == [("a", "cpu", 4, 5.0), ("c", "cpu", 4, 5.0)]
    rows = {group.group: [row.name for row in group.rows] for group in measured}
    assert rows == {"a": ["a0", "a1"], "c": ["c0", "c1"]}
    assert lines == [
        "2 measurements: about 4 min 0 s on two cores",  # 4 ordinary ones of 6 rounds of 5 s on either side
        "1 of 2, 2:35 left  a0: 2.00",  # 3 times (10 + 5 * 60) / 6
        "1 of 2, 2:35 left  a1: 2.00",
        "2 of 2, 0:00 left  c0: 2.00",
        "2 of 2, 0:00 left  c1: 2.00",
    ]


def test_a_whole_run_takes_about_half_an_hour_on_two_cores(bench):
    lines = []
    with pytest.raises(ZeroDivisionError):
        measure(bench, list(GROUPS), 3, 2.0, lambda line: lines.append(line) or 1 / 0)
    minutes = int(lines[0].partition("about ")[2].partition(" min")[0])
    assert 15 < minutes < 35


MEASURED = [
    Measured("loading", [Row("a: b", 2.0, Ratio([2.5, 1.5, 2.1], 1, 2), "tensors")]),
    Measured("step", [Row("c: d", 4, Ratio([3.0], 1, 3), "", "mm 60 %"), Row("e: f", None, Ratio([1.0], 1, 1))]),
]


def test_the_page_has_goals_what_was_reached_and_what_bounds_misses():
    page = references_page("title", MEASURED, [Parts("files", {"decoding": 1.25, "waiting": 0.5})]).markdown()
    lines = [" ".join(line.replace("|", " ").split()) for line in page.splitlines()]
    assert [line for line in lines if line.startswith("## ")] == ["## Loading", "## Step"]
    assert "ours against setting of the reference goal reached rounds goal met" in lines
    assert "a: b tensors 2.00 2.10 1.50 to 2.50 yes (2 of 3)" in lines
    assert "c: d 4.00 3.00 3.00 to 3.00 no" in lines
    assert "e: f 1.00 1.00 to 1.00" in lines
    assert [line for line in lines if "mm 60 %" in line] == ["c: d mm 60 %"]
    assert not {"a: b", "e: f"} & set(lines)  # with no bound in the table of misses
    assert "files 1.25 0.50 1.75" in lines
    assert lines.index("files 1.25 0.50 1.75") < lines.index("## Step")


def test_the_record_has_the_same():
    record = json.loads(json.dumps(references_record(MEASURED, [Parts("files", {"decoding": 1.25})])))
    first, missed, _ = record["comparisons"]
    assert (first["group"], first["goal"], first["ratio"], first["is_reached"]) == ("loading", 2.0, 2.1, True)
    assert (missed["is_reached"], missed["bound"], missed["rounds"]) == (False, "mm 60 %", [3.0])
    assert record["loading_parts"] == [{"photos": "files", "milliseconds": {"decoding": 1.25}}]


# Epochs


def test_our_epoch_is_trained_by_the_small_recipe(bench):
    small = yaml.safe_load((CONFIGS / "recipe" / "small.yaml").read_text())
    ours = dataclasses.asdict(small_recipe(32))
    different = {key for key, value in small.items() if ours[key] != value}
    assert different == {"epochs", "warmup_epochs"}
    defaults = dataclasses.asdict(dataclasses.replace(small_recipe(32), color=True, crop_area=None))
    assert ours == defaults


def test_plain_loops_train_a_network_as_large_as_ours(bench):
    measured = PlainEpochs(bench)
    ours, plain = measured.plan.build_network(measured.data.classes), measured.plain_network()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
    assert type(plain).__name__ == "ResNet"


def check_loop(loop, dtype, images):
    """A loop trains on every image once, in this precision and its memory format."""
    seen, before = [], loop.network.conv1.weight.clone()
    loop.network.conv1.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    loop.epoch()
    assert [tuple(pixels.shape) for pixels, _ in seen] == [(1, 3, 224, 224)] * images
    assert all(pixels.is_contiguous(memory_format=loop.memory_format) for pixels, _ in seen)
    assert {output.dtype for _, output in seen} == {dtype}
    assert not torch.equal(before, loop.network.conv1.weight)


def test_the_plain_loops_have_default_and_best_settings(bench, monkeypatch):
    bench.autocast = True
    monkeypatch.setattr(epochs, "fastest", lambda works: ("tensors", works["tensors"]))
    measured = PlainEpochs(bench)
    default, best = default_loop(measured), best_loop(measured)
    assert default.setting == "float32, Pillow"
    assert (default.autocast, default.memory_format) == (False, torch.contiguous_format)
    assert (best.setting, best.autocast, best.memory_format) == ("bf16, fused, tensors", True, torch.channels_last)
    assert (default.optimizer.defaults["fused"], best.optimizer.defaults["fused"]) == (None, True)
    assert default.optimizer.defaults["weight_decay"] == best.optimizer.defaults["weight_decay"] == 0.05
    assert best.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for loop in (default, best):
        check_loop(loop, torch.bfloat16 if loop is best else torch.float32, measured.images)


def test_the_second_epoch_of_our_training_counts(bench, monkeypatch):
    given = []

    def train(plan, network, data, run):
        given.append((plan, len(data.train)))
        return SimpleNamespace(history=[SimpleNamespace(images_per_second=rate) for rate in (1.0, 4.0)])

    monkeypatch.setattr(epochs, "train_classifier", train)
    measured = PlainEpochs(bench)
    assert measured.our_seconds() == 8 / 4
    assert given == [(measured.plan, 8)]
    assert measured.plan.recipe.epochs == 2


def test_an_epoch_is_compared_with_both_loops_round_by_round(bench, monkeypatch):
    loops = {name: SimpleNamespace(epoch=name, setting=name) for name in ("default", "best")}
    monkeypatch.setattr(epochs, "default_loop", lambda measured: loops["default"])
    monkeypatch.setattr(epochs, "best_loop", lambda measured: loops["best"])
    calls = []
    monkeypatch.setattr(epochs, "with_default_malloc", lambda work: partial(calls.append, work))
    monkeypatch.setattr(epochs, "seconds_of", lambda work: work() or {"default": 6.0, "best": 3.0}[calls[-1]])
    monkeypatch.setattr(PlainEpochs, "our_seconds", lambda self: calls.append("ours") or 4.0)
    monkeypatch.setattr(PlainEpochs, "_bound", lambda self, seconds: f"of {seconds}")
    against_default, against_best = PlainEpochs(bench).rows("cpu", 2, 1.0)
    assert calls == ["default", "best", *["ours", "default", "best"] * 2]  # the first two to warm up
    assert against_default[1:] == (None, Ratio([1.5, 1.5], 4.0, 6.0), "default", "")
    assert against_best[1:] == (1.1, Ratio([0.75, 0.75], 4.0, 3.0), "best", "of 4.0")


@pytest.mark.slow
def test_an_epoch_is_trained_by_ours_and_bounded(bench):
    measured = PlainEpochs(bench, model="resnet10t")
    assert measured.our_seconds() > 0
    bound = measured._bound(1e-9)
    assert bound.startswith("each by itself: ")
    by_itself, of_a_step = bound.split("; of a step: ")
    assert "steps" in by_itself
    assert "loading" in by_itself
    assert "convolution" in of_a_step


# Detection


def test_detection_has_rows_for_all_scales_and_poolings(bench):
    image = DetectedImage(bench, most_windows=5, scales=((70,), (70, 100)))
    assert len(image.windows) == 5
    rows = Ways(image, "bf16").rows("cpu", 1, 0.1)
    assert [row.name for row in rows] == [
        f"detection, {scales}, bf16, {stage}: R-CNN's way"
        for scales in ("1 scale", "2 scales")
        for stage in ("convolutions", TOTAL)
    ]
    assert all(row.ratio.median > 0 and row.setting == "5 windows at once" for row in rows)


def test_ways_have_the_precision_that_is_named(bench):
    image = DetectedImage(bench, most_windows=5)
    assert image.ways((688,), "bf16").autocast == torch.bfloat16
    assert image.ways((688,), "float32").autocast is None
    assert image.scales == ((688,), (480, 576, 688, 864, 1200))


def test_goals_of_detection_that_are_missed_name_the_slowest_stages(bench):
    ours = dict(zip([*STAGES, TOTAL], [1.0, 2.0, 1.0, 6.0, 10.0], strict=True))
    timed = TimedWays(1995, 1995, "float32", 64, [ours], [{stage: 19 * value for stage, value in ours.items()}])
    row = Ways(DetectedImage(bench), "float32")._row(timed, (688,), TOTAL, "cpu")
    assert (row.goal, row.ratio.median, row.is_reached) == (20, 19, False)
    assert row.bound == "fully connected 60 %, convolutions 20 %, input 10 %"
    assert Ways(DetectedImage(bench), "float32")._row(timed, (688,), "convolutions", "cuda").bound == ""


def test_pooling_is_compared_on_one_thread(bench, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    noted = SimpleNamespace(works=lambda count: [lambda: seen.append((count, torch.get_num_threads()))] * 3)
    monkeypatch.setattr(detection_rows.BothWays, "poolings", lambda self, windows: noted)
    try:
        works = DetectedImage(bench).pooling(7)
        works.ours()
        works.reference()
    finally:
        torch.set_num_threads(threads)
    assert seen == [(7, 1), (7, 1)]


# The command


def test_the_command_measures_the_groups_that_are_chosen(tmp_path, run_here, monkeypatch):
    calls = []
    monkeypatch.setattr(side_by_side, "GROUPS", {name: lambda bench, n=name: [Fake(n, 1, calls)] for name in GROUPS})
    done = run_here("benchmark", "references", "only=[views,step]", "rounds=2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["name"] for row in record["comparisons"]] == ["step0", "step1", "views0", "views1"]
    assert record["hardware"]
    assert record["loading_parts"] == []
    assert [name for name, *_ in calls] == ["step", "views"]
    assert len(done.stderr.splitlines()) == 1 + 4

    calls.clear()
    monkeypatch.setattr("sppnet.benchmark.loading_parts.loading_parts", lambda bench: [Parts("a", {"b": 1.0})])
    done = run_here("benchmark", "references", cwd=tmp_path)
    assert [name for name, *_ in calls] == list(GROUPS)
    assert {*GROUPS} == {line[3:].lower() for line in done.stdout.splitlines() if line.startswith("## ")}
    assert "Milliseconds of one core" in done.stdout
    assert list(tmp_path.iterdir()) == []
