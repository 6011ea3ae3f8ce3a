"""A run that is stopped anywhere and resumed ends as the uninterrupted one, bit for bit."""

import dataclasses
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import make_image_folder
from sppnet.classify import training
from sppnet.classify.loading import CenterCrops
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.training import train_classifier
from sppnet.data.batches import to_network_input
from sppnet.data.sources import open_data, select_images
from sppnet.lightning_checkpoints import BEST, LAST, PREVIOUS, recorded_precision
from sppnet.network import load_network
from sppnet.results.records import read_result, result_text
from sppnet.runtime.signals import Stopped


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data("folder", root=str(make_image_folder(tmp_path_factory.mktemp("data"), train=9, val=3)))


@dataclasses.dataclass(frozen=True)
class SignalAt:
    """Images; reading the `reads`-th one sends this process a signal."""

    images: object
    reads: int
    signal: int = signal.SIGTERM
    done: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        self.done.append(index)
        if len(self.done) == self.reads:
            os.kill(os.getpid(), self.signal)
        return self.images.read(index)

    def __getattr__(self, name):
        return getattr(self.images, name)


# Everything random about images, with a size for every batch.
AUGMENTED = {
    "crop_area": [0.2, 1.0],
    "rand_augment": 9,
    "erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
    "balanced": True,
    "label_smoothing": 0.1,
}
BY_EPOCH = Sizes(cycle=[64, 48])
BY_BATCH = Sizes(uniform=[48, 64], multiple=8, every="batch")


def train(
    data,
    run,
    workers=0,
    learning_rate=0.02,
    epochs=3,
    batch_size=4,
    precision="32-true",
    sizes=BY_EPOCH,
    recipe=None,
    **machine,
):
    """Trains for three epochs of four steps, at 64, 48 and 64 pixels, with dropout."""
    fixed = {
        "epochs": epochs,
        "batch_size": batch_size,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": min(1, epochs - 1),
        "color": True,
    }
    recipe = Recipe(learning_rate=learning_rate, **(fixed | (recipe or {})))
    plan = TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05, "normalization": "none"},
        levels=[3, 2, 1],
        hidden=8,
        sizes=sizes,
        source="folder",
        data_options={},
        recipe=recipe,
        machine=Machine(accelerator="cpu", precision=precision, workers=workers, **({"cache": 0} | machine)),
        seed=0,
    )
    return train_classifier(plan, plan.build_network(data.classes), data, run)


def outcome(run, result):
    """Returns what must be the same, bit for bit: weights, optimizer, and metrics other than times."""
    checkpoint = torch.load(run / "checkpoints" / LAST, weights_only=True)
    history = [dataclasses.replace(epoch, seconds=None, images_per_second=0) for epoch in result.history]
    trained = checkpoint.get("trained_weights")  # beside their average
    return {
        "weights": checkpoint["state_dict"],
        "trained": trained,
        "optimizer": checkpoint["optimizer_states"],
        "history": history,
    }


def assert_same(one, other):
    flat, others = (torch.utils._pytree.tree_flatten(tree) for tree in (one, other))
    assert flat[1] == others[1]
    for a, b in zip(flat[0], others[0], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    return outcome(run, train(data, run))


# An epoch reads 16 images to train and 6 to validate.
@pytest.mark.parametrize("reads", [1, 6, 13, 16, 17, 27, 41])
def test_a_run_stopped_at_any_image_and_resumed_ends_the_same(data, uninterrupted, tmp_path, reads, capfd):
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, reads)), tmp_path)
    assert stopped.value.code == os.EX_TEMPFAIL
    step = min(4 * -(-reads // 16), -(-reads // 4))
    assert (
        f"stopped by SIGTERM; {tmp_path}/checkpoints/last.ckpt is of epoch {-(-reads // 16)}, step {step}; the same"
        in (capfd.readouterr().err)
    )
    assert not (tmp_path / "result.json").exists()
    assert_same(outcome(tmp_path, train(data, tmp_path)), uninterrupted)


@pytest.mark.parametrize("reads", [21, 30, 36])
def test_a_run_stopped_while_it_keeps_images_and_resumed_ends_the_same(data, uninterrupted, tmp_path, reads):
    """Before it starts, it reads the first image and the headers of all 18; every image once more, to decode it."""
    images = SignalAt(data.train, reads)
    with pytest.raises(Stopped):
        train(data._replace(train=images), tmp_path, cache="auto")
    result = train(data, tmp_path, cache="auto")
    assert len(images.done) <= 1 + 18 + 18
    assert_same(outcome(tmp_path, result), uninterrupted)


@pytest.mark.parametrize("reads", [1, 6, 8, 18])
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_stopped_in_validation_loses_nothing_and_validates_again(
    data, uninterrupted, tmp_path, reads, times, capfd
):
    epoch = -(-reads // 6)
    for at in (reads, 4)[:times]:
        with pytest.raises(Stopped):
            train(data._replace(val=SignalAt(data.val, at)), tmp_path)
        assert f"last.ckpt is of epoch {epoch}, step {4 * epoch}; the same" in capfd.readouterr().err
    assert_same(outcome(tmp_path, train(data, tmp_path)), uninterrupted)


def test_if_validation_fails_the_epoch_is_still_saved(data, uninterrupted, tmp_path):
    class Damaged(SignalAt):
        def read(self, index):
            return b"" if index == 4 else self.images.read(index)

        def name(self, index):
            return "a.jpg" if index == 4 else self.images.name(index)

    with pytest.raises(
        ValueError,
        match=r"a\.jpg: the file is empty; repair the file, or skip it with .*prepare_data.* exclude=\[a.jpg\]",
    ):
        train(data._replace(val=Damaged(data.val, 0)), tmp_path)
    result = train(data, tmp_path)
    assert torch.load(tmp_path / "checkpoints" / PREVIOUS, weights_only=True)["global_step"] == 8
    assert_same(outcome(tmp_path, result), uninterrupted)


def test_a_signal_before_the_first_step_stops_there(data, uninterrupted, tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)

    class Opened(SignalAt):
        def __len__(self):
            if not self.done and signal.getsignal(signal.SIGTERM) is not before:
                self.done.append(None)
                os.kill(os.getpid(), signal.SIGTERM)
            return len(self.images)

    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=Opened(data.train, -1)), tmp_path)
    assert stopped.value.code == os.EX_TEMPFAIL
    assert "nothing is saved yet" in capfd.readouterr().err
    assert_same(outcome(tmp_path, train(data, tmp_path)), uninterrupted)


# Of three epochs the second and third, or the third only, are validated.
@pytest.mark.parametrize(("every", "validated"), [(2, [2, 3]), (10, [3])])
def test_the_last_epoch_is_always_validated_even_after_a_stop(data, tmp_path, every, validated):
    result = train(data, tmp_path / "uninterrupted", validate_every=every)
    assert [epoch.epoch for epoch in result.history if epoch.n is not None] == validated
    expected = outcome(tmp_path / "uninterrupted", result)
    for reads in (32, 33, 48):
        run = tmp_path / str(reads)
        with pytest.raises(Stopped):
            train(data._replace(train=SignalAt(data.train, reads)), run, validate_every=every)
        assert_same(outcome(run, train(data, run, validate_every=every)), expected)
    for reads in (1, 6 * len(validated)):
        run = tmp_path / f"validation{reads}"
        with pytest.raises(Stopped):
            train(data._replace(val=SignalAt(data.val, reads)), run, validate_every=every)
        assert_same(outcome(run, train(data, run, validate_every=every)), expected)


def test_a_resumed_run_keeps_its_precision_on_a_machine_with_another_default(
    data, uninterrupted, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: False)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path, precision=None)
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: True)
    capfd.readouterr()
    result = train(data, tmp_path, precision=None)
    assert "it was trained in 32-true and continues in 32-true\n" in capfd.readouterr().out
    assert result.precision == "32-true"
    assert_same(outcome(tmp_path, result), uninterrupted)


def test_a_requested_precision_overrides_that_of_the_checkpoint(data, tmp_path, capfd):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path)
    result = train(data, tmp_path, precision="bf16-mixed")
    assert "it was trained in 32-true and continues in bf16-mixed, as asked\n" in capfd.readouterr().out
    assert result.precision == "bf16-mixed"
    assert recorded_precision(tmp_path / "checkpoints" / LAST) == "bf16-mixed"


def test_a_batch_larger_than_the_training_set_is_refused_before_anything_is_written(data, tmp_path):
    message = r"^recipe\.batch_size=19: must be at most 18, the number of training images; recipe\.batch_size=4 "
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run", batch_size=19)
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_repeatedly_ends_the_same_with_any_number_of_workers(data, uninterrupted, tmp_path):
    for workers, reads in ((0, 5), (0, 10), (0, 9)):
        with pytest.raises(Stopped):
            train(data._replace(train=SignalAt(data.train, reads)), tmp_path, workers)
    assert_same(outcome(tmp_path, train(data, tmp_path, workers=2)), uninterrupted)


def test_a_run_with_augmentation_mixing_balance_and_sizes_by_batch_ends_the_same(data, tmp_path):
    options = {"recipe": AUGMENTED, "sizes": BY_BATCH}
    excluded = [data.train.name(i) for i in range(12, 18)]
    data = data._replace(train=select_images(data, "train", excluded))  # leaves 9 of one class and 3 of the other
    expected = outcome(tmp_path / "whole", train(data, tmp_path / "whole", **options))
    for reads in (6, 9):
        with pytest.raises(Stopped):
            train(data._replace(train=SignalAt(data.train, reads)), tmp_path / "run", **options)
    assert_same(outcome(tmp_path / "run", train(data, tmp_path / "run", workers=2, **options)), expected)


def test_each_setting_of_images_changes_what_is_trained(data, tmp_path):
    """Their effects are tested where they are made; here, that they reach the training."""
    excluded = [data.train.name(i) for i in range(12, 18)]
    data = data._replace(train=select_images(data, "train", excluded))
    settings = {"erasing": 1.0, "mixup": 0.4, "balanced": True, "class_weights": True}
    options = {"plain": {}, **{key: {"recipe": {key: value}} for key, value in settings.items()}}
    options["by_batch"] = {"sizes": Sizes(cycle=[64, 48], every="batch")}
    first_layers = set()
    for key, changed in options.items():
        train(data, tmp_path / key, epochs=1, **changed)
        weights = torch.load(tmp_path / key / "checkpoints" / LAST, weights_only=True)["state_dict"]
        first_layers.add(next(iter(weights.values())).numpy().tobytes())
    assert len(first_layers) == len(options)


@pytest.mark.parametrize("left", [17, 5])
def test_changed_data_is_refused_unless_allowed(data, tmp_path, left):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 11)), tmp_path)
    names = [data.train.name(i) for i in range(18)]
    fewer = data._replace(train=select_images(data, "train", names[: 18 - left]))
    with pytest.raises(ValueError, match=r"^the data has changed since .*trainer\.allow_changed_data=true"):
        train(fewer, tmp_path)
    result = train(fewer, tmp_path, allow_changed_data=True)
    assert (result.training_images, len(result.history)) == (left, 3)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(data, tmp_path):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path)
    before = (tmp_path / "checkpoints" / LAST).read_bytes()
    message = (
        r"not finite any more, at the latest in epoch 1, step \d, size 64, rate 1e\+30, gradient norm .*"
        r"lower recipe\.learning_rate=1e\+30, or set recipe\.clip_gradient_norm=5"
    )
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path, learning_rate=1e30)
    assert (tmp_path / "checkpoints" / LAST).read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_stays_at_guessing_warns_once(data, tmp_path):
    with pytest.warns(
        UserWarning, match=r"^the loss after 50 epochs is 0\.69\d; guessing gives 0\.693: is .*rate"
    ) as caught:
        train(data, tmp_path, learning_rate=1e-9, epochs=52)
    assert len([warning for warning in caught if "guessing" in str(warning.message)]) == 1


def test_deterministic_training_is_the_same_twice(data, tmp_path):
    try:
        one, other = (outcome(tmp_path / name, train(data, tmp_path / name, deterministic=True)) for name in "ab")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(one, other)


# All settings of the update of the weights together; the third epoch is the first that trains the backbone. The paper's
# initialization gives this narrow network gradients of nearly 0.
EVERY_UPDATE = {
    "initialization": "fan_in",
    "input_std": [58.0, 58.0, 58.0],
    "optimizer": "adamw",
    "optimizer_options": {"betas": [0.8, 0.9]},
    "schedule": "tanh",
    "base_batch_size": 8,
    "layer_decay": 0.8,
    "backbone_rate": 0.5,
    "frozen_epochs": 2,
    "ema_decay": 0.7,
    "stop_patience": 3,
    "clip_gradient_norm": 1.0,
}


@pytest.fixture(scope="module")
def updated(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("updated")
    return run, outcome(run, train(data, run, recipe=EVERY_UPDATE, accumulate=2))


@pytest.mark.parametrize("reads", [6, 27, 32, 33, 45])
def test_with_every_setting_of_the_update_a_resumed_run_ends_the_same(data, updated, tmp_path, reads):
    """Inside and after the frozen epochs, between two parts of a step's images, and at the end of an epoch."""
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, reads)), tmp_path, recipe=EVERY_UPDATE, accumulate=2)
    assert_same(outcome(tmp_path, train(data, tmp_path, recipe=EVERY_UPDATE, accumulate=2)), updated[1])


def test_the_backbone_is_frozen_and_then_trained_and_the_average_is_what_a_run_gives(data, updated, tmp_path):
    run, _ = updated
    last = torch.load(run / "checkpoints" / LAST, weights_only=True)
    frozen = torch.load(run / "checkpoints" / PREVIOUS, weights_only=True)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 1)), tmp_path, recipe=EVERY_UPDATE)
    start = torch.load(tmp_path / "checkpoints" / LAST, weights_only=True)
    for name, weights in last["trained_weights"].items():
        is_backbone = name.startswith("network.backbone.")
        assert torch.equal(frozen["trained_weights"][name], start["trained_weights"][name]) == is_backbone
        assert not torch.equal(weights, frozen["trained_weights"][name])
        assert not torch.equal(weights, last["state_dict"][name])
    network = load_network(run)
    assert all(torch.equal(last["state_dict"][f"network.{k}"], v) for k, v in network.state_dict().items())


def test_a_validation_tests_the_average(data, updated):
    """The same errors and loss as those of the network that is saved."""
    run, results = updated
    network, images = load_network(run), CenterCrops(data.val, side=64)
    pixels = torch.stack([images[i]["image"] for i in range(len(images))]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = network(to_network_input(pixels, network.input_mean, network.input_std))
    labels = torch.from_numpy(data.val.labels)
    assert results["history"][-1].top1_wrong == int((logits.argmax(1) != labels).sum())
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert results["history"][-1].val_loss == pytest.approx(loss, rel=1e-5)


def test_a_run_that_stops_early_ends_with_its_best_epoch(data, tmp_path, capsys):
    """At a rate that teaches nothing, the first epoch is the best one. Killed after the last epoch, it ends so too."""
    options = {"learning_rate": 1e-12, "epochs": 9, "recipe": {"stop_patience": 2}}
    result = train(data, tmp_path, **options)
    assert (result.epochs, result.top1_wrong) == (len(result.history), result.history[result.best_epoch - 1].top1_wrong)
    assert result.stopped == "no lower validation error in 2 epochs (recipe.stop_patience)"
    assert result.epochs < 9
    folder = tmp_path / "checkpoints"
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] + 1 for path in folder.iterdir()}
    assert epochs == {LAST: result.best_epoch, BEST: result.best_epoch, PREVIOUS: result.epochs}
    assert f"stopped early: {result.stopped}; epoch 1 is the result" in result_text(result, tmp_path)
    assert read_result(tmp_path) == result

    (tmp_path / "result.json").unlink()
    (folder / PREVIOUS).replace(folder / LAST)
    again = train(data, tmp_path, **options)
    assert (again.epochs, again.best_epoch, again.top1_wrong) == (result.epochs, result.best_epoch, result.top1_wrong)

    (tmp_path / "result.json").unlink()
    (folder / PREVIOUS).replace(folder / LAST)
    (folder / BEST).unlink()
    lost = train(data, tmp_path, **options)
    assert (lost.epochs, lost.best_epoch, lost.top1_wrong) == (
        result.epochs,
        result.epochs,
        result.history[-1].top1_wrong,
    )
    assert lost.best_epoch != result.best_epoch


def best_of(run):
    """The epoch of the best checkpoint, from 1; None if there is none."""
    file = run / "checkpoints" / BEST
    return torch.load(file, weights_only=True)["epoch"] + 1 if file.exists() else None


LEARNING = {"initialization": "fan_in", "input_std": [58.0, 58.0, 58.0], "dropout": 0.3}  # better after every epoch


def test_the_best_epoch_is_kept_beside_the_last_ones(data, tmp_path):
    better = train(data, tmp_path / "better", recipe=LEARNING, epochs=4)
    losses = [epoch.val_loss for epoch in better.history]
    assert (losses, best_of(tmp_path / "better")) == (sorted(losses, reverse=True), 4)
    worse = train(data, tmp_path / "worse", recipe=LEARNING | {"dropout": 0.5}, learning_rate=0.03, epochs=4)
    errors = [epoch.top1_wrong for epoch in worse.history]
    assert errors[0] < errors[-1]
    assert (worse.top1_wrong, best_of(tmp_path / "worse")) == (errors[-1], 1)
    network = load_network(tmp_path / "worse" / "checkpoints" / BEST)
    assert not torch.equal(network.fc6.weight, load_network(tmp_path / "worse").fc6.weight)


@pytest.mark.parametrize(("resumed", "best"), [("after epoch 2", 2), ("inside epoch 3", None)])
@pytest.mark.parametrize("found", ["none", "epoch 1", "damaged"])
def test_a_resumed_run_corrects_its_best_checkpoint(data, tmp_path, resumed, best, found):
    """As if it had died before it gave the name, or resumes from before its best epoch, because of damage.

    The run is better after every epoch. Inside the third one it has the checkpoint of the second one no more.
    """
    folder = tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 17)), tmp_path, recipe=LEARNING)
    first = (folder / BEST).read_bytes()
    assert best_of(tmp_path) == 1
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 16)), tmp_path, recipe=LEARNING)
    assert best_of(tmp_path) == 2

    (folder / BEST).unlink()
    if found != "none":
        (folder / BEST).write_bytes(first if found == "epoch 1" else first[:1000])
    if resumed == "after epoch 2":
        (folder / PREVIOUS).replace(folder / LAST)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 1)), tmp_path, recipe=LEARNING)
    assert best_of(tmp_path) == best


@pytest.mark.parametrize(("classes", "images"), [(("cat",), 1), (("cat",), 6), (("cat", "dog"), 1)])
def test_one_image_and_one_class_are_enough(tmp_path, classes, images):
    folder = make_image_folder(tmp_path / "images", classes, train=images, val=1)
    result = train(open_data("folder", root=str(folder)), tmp_path / "run", batch_size=min(4, images * len(classes)))
    assert (result.training_images, result.num_classes) == (images * len(classes), len(classes))
    assert result.n == len(classes)
    if len(classes) == 1:
        assert result.top1_error == 0


@dataclasses.dataclass(frozen=True)
class Watched:
    """Images; every read records how much memory, how many open files and how many threads this process has."""

    images: object
    notes: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.notes.append(
            (pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count())
        )
        return self.images.read(index)

    def __getattr__(self, name):
        return getattr(self.images, name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounts")
@pytest.mark.filterwarnings("ignore:the loss after")  # of two images nothing is learned
def test_two_hundred_epochs_take_no_more_memory_than_one_hundred(tmp_path, capsys):
    folder = make_image_folder(tmp_path / "images", train=1, val=1)
    data = open_data("folder", root=str(folder))
    watched = Watched(data.train)
    result = train(data._replace(train=watched), tmp_path / "run", epochs=200, batch_size=2)
    assert len(result.history) == 200
    notes = watched.notes[::2]  # two images an epoch
    (memory, files, threads), (memory_then, files_then, threads_then) = notes[199], notes[99]
    assert memory - memory_then < 10
    assert files <= files_then  # fewer, where those of other tests were closed meanwhile
    assert threads <= threads_then
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [BEST, LAST, PREVIOUS]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(events.Scalars("val/top1_error_percent")) == 200
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    left = [clock.split(":") for clock in (line.split()[-2] for line in lines)]
    assert all(60 * int(minutes) + int(seconds) < 300 for minutes, seconds in left)
    assert left[-1] == ["0", "00"]
