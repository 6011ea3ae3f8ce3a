"""Steps, warnings and checkpoints of the classifier, against stochastic gradient descent written out."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningDataModule, Trainer

from sppnet.backbones import build_backbone
from sppnet.classify.classifier import Classifier
from sppnet.classify.machine import Machine
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import cosine_factor
from sppnet.network import IMAGENET_MEAN, SPPNet
from test_configs import composed

CLASSES = 3
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*deprecated")


def make_classifier(labels=(0, 1, 1, 2), parts=1, **options):
    """A classifier for `Batches` of these labels."""
    torch.manual_seed(0)
    recipe = {"epochs": 4, "batch_size": 2, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    schedule = {} if "warmup_epochs" in options else {"plateau_patience": 2}
    network = SPPNet(
        build_backbone("zf5", width=0.05, normalization="none"),
        (2, 1),
        num_classes=CLASSES,
        hidden=8,
        dropout=0.0,
        initialization="fan_in",
    )
    return Classifier(
        network,
        Recipe(**(recipe | schedule | options)),
        seed=0,
        size_of_epoch=lambda epoch: 48,
        training_labels=np.array(labels),
        validation_images=len(labels),
        parts=parts,
    )


class Batches(LightningDataModule):
    """The same few batches of random network inputs in every epoch, at 48 pixels."""

    def __init__(self, steps, labels=(0, 1, 1, 2)):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        labels = torch.tensor(labels)
        self.batches = [(torch.randn(len(labels), 3, 48, 48, generator=random), labels) for _ in range(steps)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.batches[:1], batch_size=None)


class Updates(Callback):
    """Records the learning rate of every step and the weights after it."""

    def __init__(self):
        self.rates, self.weights = [], []

    def on_train_batch_end(self, trainer, classifier, *_):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.weights.append(flat(classifier.network))


def flat(network):
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def fit(classifier, batches, precision="32-true"):
    updates = Updates()
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=classifier.recipe.epochs,
        logger=False,
        callbacks=[updates],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=batches)
    return updates


def weights_by_definition(network, recipe, batches, rates):
    """The weights after every step of stochastic gradient descent, written out: slow and obvious."""
    velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
    weights = []
    for (images, labels), rate in zip(batches, rates, strict=True):
        scores = network(images).log_softmax(dim=1)
        one_hot = F.one_hot(labels, CLASSES).float()
        targets = (1 - recipe.label_smoothing) * one_hot + recipe.label_smoothing / CLASSES
        loss = -(targets * scores).sum(dim=1).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        if recipe.clip_gradient_norm is not None:
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
            gradients = [gradient * min(1.0, recipe.clip_gradient_norm / norm) for gradient in gradients]
        with torch.no_grad():
            for parameter, gradient, moving in zip(network.parameters(), gradients, velocity, strict=True):
                decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
                moving.mul_(recipe.momentum).add_(gradient + decay * parameter)
                parameter -= rate * moving
        weights.append(flat(network))
    return weights


@pytest.mark.parametrize(
    "options",
    [
        {"clip_gradient_norm": None},
        {"clip_gradient_norm": 0.05},
        {"label_smoothing": 0.1, "warmup_epochs": 1},  # clipped, the smoothed gradient would be nearly the same
        {"parts": 2},
        {"parts": 3, "clip_gradient_norm": 0.05},
    ],
    ids=str,
)
def test_every_step_is_the_one_that_the_recipe_defines(options):
    """Loss with smoothing, clipping, decay of weights and not of biases, momentum, and the rate of the step."""
    classifier, batches = make_classifier(epochs=2, learning_rate=0.05, weight_decay=0.1, **options), Batches(steps=3)
    network, start = copy.deepcopy(classifier.network), flat(classifier.network)
    updates = fit(classifier, batches)
    warmup = 3 if "warmup_epochs" in options else 0
    rates = [0.05 * (cosine_factor(step, warmup, 6) if warmup else 1) for step in range(6)]
    assert updates.rates == [[pytest.approx(rate)] * 2 for rate in rates]
    expected = weights_by_definition(network, classifier.recipe, batches.batches * 2, rates)
    for after, defined in zip(updates.weights, expected, strict=True):
        assert float((after - defined).norm()) < 1e-3 * float((defined - start).norm())


@pytest.mark.parametrize("options", [{"warmup_epochs": 0, "schedule": "constant"}, {"plateau_patience": 2}], ids=str)
def test_the_rate_of_every_step_follows_the_batch(options):
    updates = fit(make_classifier(epochs=1, base_batch_size=8, **options), Batches(steps=2))  # batches of 2
    assert updates.rates == [[pytest.approx(0.1 / 4)] * 2] * 2


def test_every_step_draws_its_own_masks_and_a_run_with_the_same_seed_draws_them_again():
    def masks():
        classifier, drawn = make_classifier(epochs=2), []

        def draw(network, *_):
            if classifier.trainer.training:
                drawn.append(tuple(F.dropout(torch.ones(50)).tolist()))

        classifier.network.register_forward_pre_hook(draw)
        fit(classifier, Batches(steps=2))
        return drawn

    first = masks()
    assert len(set(first)) == len(first) == 4
    assert masks() == first


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_loss_of_an_epoch_is_the_mean_over_its_images(parts):
    classifier, batches = make_classifier(epochs=1, learning_rate=1e-12, parts=parts), Batches(steps=3)
    network = copy.deepcopy(classifier.network)
    fit(classifier, batches)
    losses = [float(F.cross_entropy(network(images), labels).detach()) for images, labels in batches.batches]
    assert classifier.history[0]["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_the_backbone_has_its_own_rate_in_every_step():
    updates = fit(make_classifier(epochs=2, warmup_epochs=1, backbone_rate=0.25), Batches(steps=2))
    for step, rates in enumerate(updates.rates):
        rate = 0.1 * cosine_factor(step, 2, 4)
        assert rates == pytest.approx([rate, rate, 0.25 * rate, 0.25 * rate])


def test_the_average_follows_every_step():
    """With the decay of the step: none after the first one, then 1 - step ** (-2 / 3), at most 0.5."""
    classifier = make_classifier(epochs=2, ema_decay=0.5)
    weights = fit(classifier, Batches(steps=3)).weights
    average = weights[0]
    for step, after in enumerate(weights[1:], start=2):
        decay = min(0.5, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * after
    torch.testing.assert_close(flat(classifier.average.network), average)


def test_a_frozen_backbone_is_run_as_in_tests():
    """So that its BatchNorm keeps its statistics; afterwards it is run as in training."""
    classifier, modes = make_classifier(epochs=3, frozen_epochs=2), []

    def note(network, *_):
        if classifier.trainer.training:
            modes.append((classifier.current_epoch, network.training))

    classifier.network.backbone.register_forward_hook(note)
    fit(classifier, Batches(steps=2))
    assert modes == [(0, False)] * 2 + [(1, False)] * 2 + [(2, True)] * 2


ALLOWED_PRECISIONS = ("32-true", "bf16-mixed")


def test_two_precisions_are_allowed():
    """16-mixed is none of them: fused SGD takes the scale off the gradients after they have been clipped."""
    for precision in ALLOWED_PRECISIONS:
        assert Machine(precision=precision).precision == precision
    for precision in ("16-mixed", "16-true", "bf16-true", "64-true"):
        message = f"^trainer.precision={precision}: must be one of {', '.join(ALLOWED_PRECISIONS)}, or null$"
        with pytest.raises(ValueError, match=message):
            Machine(precision=precision)


@pytest.mark.parametrize("precision", ALLOWED_PRECISIONS)
def test_the_first_update_of_every_precision_is_that_of_float32(precision):
    """Clipped to norm 0.05, so that a scale that is left on the gradients would shrink it."""
    classifier, batches = make_classifier(epochs=1, clip_gradient_norm=0.05, weight_decay=0.0), Batches(steps=1)
    before = flat(classifier.network)
    defined = weights_by_definition(copy.deepcopy(classifier.network), classifier.recipe, batches.batches, [0.1])
    update = fit(classifier, batches, precision).weights[0] - before
    assert float((defined[0] - before).norm()) == pytest.approx(0.1 * 0.05, rel=1e-4)
    assert float((update - (defined[0] - before)).norm()) < 0.05 * 0.1 * 0.05


def test_the_papers_recipe_has_the_papers_numbers_and_so_has_its_optimizer():
    """arXiv:1406.4729v4, §3.1; what it leaves out is AlexNet's."""
    numbers = {
        "epochs": 70,
        "batch_size": 128,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "plateau_patience": 6,
        "plateau_drops": 2,
        "warmup_epochs": None,
        "label_smoothing": 0.0,
        "clip_gradient_norm": None,
        "dropout": 0.5,
        "color": True,
        "initialization": "paper",
        "input_mean": [123.675, 116.28, 103.53],  # red, green, blue
        "input_std": [1.0, 1.0, 1.0],
    }
    recipe = composed("backbone=zf5", "recipe=paper").recipe
    assert Recipe(**recipe) == Recipe(**numbers)  # all that can be changed besides is off
    weights, biases = (
        make_classifier(**{k: v for k, v in numbers.items() if v is not None}).configure_optimizers().param_groups
    )
    for group, decay in ((weights, 0.0005), (biases, 0.0)):
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, decay)
        assert (group["dampening"], group["nesterov"]) == (0, False)


def test_the_input_mean_is_that_of_imagenet_red_first():
    assert IMAGENET_MEAN == (123.675, 116.28, 103.53)
    for recipe in ("paper", "fast"):
        assert tuple(composed(f"recipe={recipe}").recipe.input_mean) == IMAGENET_MEAN
    for name in ("paper", "fast"):
        assert tuple(composed(f"recipe={name}").recipe.input_mean) == IMAGENET_MEAN


def at_the_frequencies(classifier, frequencies):
    """The same network, giving every image these probabilities."""
    with torch.no_grad():
        classifier.network.fc8.weight.zero_()
        classifier.network.fc8.bias.copy_(torch.tensor(frequencies).log())
    return classifier


def test_a_loss_at_the_entropy_of_the_labels_warns_once():
    """Three of four images are of one class: with smoothing, guessing costs 0.879, though ln(3) is 1.099."""
    frequencies = [0.7 * share + 0.3 / 3 for share in (3 / 4, 1 / 4, 0)]
    classifier = make_classifier([0, 0, 0, 1], epochs=5, learning_rate=1e-9, warmup_epochs=0, label_smoothing=0.3)
    with pytest.warns(
        UserWarning, match=r"^the loss after 4 epochs is 0\.879; guessing gives 0\.879: is .*rate"
    ) as caught:
        fit(at_the_frequencies(classifier, frequencies), Batches(steps=50, labels=[0, 0, 0, 1]))
    assert len([warning for warning in caught if "guessing" in str(warning.message)]) == 1


def test_a_single_class_needs_no_warning():
    fit(make_classifier([1], epochs=4, learning_rate=1e-9, warmup_epochs=0), Batches(steps=50, labels=[1]))


def test_weights_decay_and_biases_do_not():
    weights, biases = make_classifier().configure_optimizers().param_groups
    assert weights["weight_decay"] == 0.01
    assert biases["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in weights["params"])
    assert all(parameter.ndim == 1 for parameter in biases["params"])
    assert len(weights["params"]) == len(biases["params"]) == 8


def test_the_rate_drops_with_the_history_of_validation_errors():
    classifier = make_classifier(learning_rate=0.01)
    classifier.history = [{"top1_wrong": wrong, "n": 10} for wrong in (5, 5, 5)]
    assert classifier.learning_rate() == 0.001
    classifier.history = classifier.history[:2]
    assert classifier.learning_rate() == 0.01


def test_a_checkpoint_carries_the_description_and_the_history_in_plain_values(tmp_path):
    classifier, checkpoint = make_classifier(), {}
    classifier.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    classifier.history = [{"epoch": 1, "top1_wrong": 1, "n": 2}]
    classifier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "file")
    loaded = torch.load(tmp_path / "file", weights_only=True)
    other = make_classifier()
    other.on_load_checkpoint(loaded)
    assert other.history == classifier.history
    assert loaded["network"]["levels"] == [2, 1]
