"""The loss of training against its definition; Mixup and CutMix against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from sppnet.classify.mixing import TrainingLoss, class_weights
from test_augmentation import recipe

LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3])  # none of class 2


def make_loss(labels=LABELS, classes=4, **options):
    return TrainingLoss(recipe(**options), labels, classes)


def batch(count=5, classes=4, side=11, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side + 2, generator=random).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(classes, (count,), generator=random)


def loss_by_definition(scores, targets, smoothing, weights):
    """The mean over the images of -sum of w_c * t_c * ln p_c, one image and one class after the other."""
    losses = []
    for row, target in zip(scores.double(), targets.double(), strict=True):
        p = row.exp() / row.exp().sum()
        smoothed = [(1 - smoothing) * float(t) + smoothing / len(row) for t in target]
        losses.append(-sum(w * t * float(x.log()) for w, t, x in zip(weights, smoothed, p, strict=True)))
    return sum(losses) / len(losses)


@given(st.integers(1, 7), st.integers(1, 5), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 0.9]))
def test_the_loss_is_the_one_of_the_definition(count, classes, mixed, weighted, smoothing):
    random = torch.Generator().manual_seed(count * classes)
    labels = torch.randint(classes, (count,), generator=random)
    scores = torch.randn(count, classes, generator=random)
    targets = torch.nn.functional.one_hot(labels, classes).float()
    if mixed:
        targets = 0.3 * targets + 0.7 * targets.roll(1, 0)
    seen = np.arange(3 * classes) % classes + (np.arange(3 * classes) == 0) * (classes - 1)
    loss = make_loss(seen, classes, label_smoothing=smoothing, class_weights=weighted)
    weights = class_weights(seen, classes).tolist() if weighted else [1.0] * classes
    expected = loss_by_definition(scores, targets, smoothing, weights)
    assert float(loss(scores, targets if mixed else labels)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_weights_the_loss_is_torchs_bit_for_bit():
    scores, labels = torch.randn(7, 4), batch(7)[1]
    expected = torch.nn.functional.cross_entropy(scores, labels, label_smoothing=0.1)
    assert torch.equal(make_loss(label_smoothing=0.1)(scores, labels), expected)


def test_weights_of_classes_are_proportional_to_1_by_their_images_with_the_mean_1_over_the_images():
    weights = class_weights(LABELS, 4)
    assert weights.tolist() == pytest.approx([9 / (6 * 3), 9 / (2 * 3), 0.0, 9 / (1 * 3)])
    assert float(weights[LABELS].mean()) == pytest.approx(1.0)
    assert class_weights(np.array([1, 0, 0, 1]), 2).tolist() == [1.0, 1.0]


def test_mixing_is_off_unless_the_recipe_asks_for_it_and_draws_nothing():
    images, labels = batch()
    state = torch.get_rng_state()
    one, other = make_loss().mix(images, labels)
    assert one is images
    assert other is labels
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("key", "kind"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_mixed_batch_is_torchvisions(key, kind, count):
    images, labels = batch(count)
    loss, theirs = make_loss(**{key: 0.4}), kind(alpha=0.4, num_classes=4)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = theirs(images, labels)
        torch.manual_seed(seed)
        mixed = loss.mix(images, labels)
        assert torch.equal(mixed[0], expected[0])
        assert torch.equal(mixed[1], expected[1])
        assert mixed[0].is_contiguous(memory_format=torch.channels_last)
        assert mixed[1].sum(dim=1).tolist() == pytest.approx([1.0] * count)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_the_host_never_waits_for_the_values_of_a_batch(options):
    """Tensors on "meta" have none: reading one would raise."""
    loss = make_loss(**options, class_weights=True).to("meta")
    images, labels = loss.mix(*(tensor.to("meta") for tensor in batch()))
    assert loss(torch.randn(5, 4, device="meta"), labels).shape == ()
    assert images.shape == batch()[0].shape


def test_with_mixup_and_cutmix_each_batch_takes_one_of_them():
    images, labels = batch(6)
    loss, taken = make_loss(mixup=1.0, cutmix=1.0), []
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, targets = loss.mix(images, labels)
        torch.manual_seed(seed)
        again = loss.mix(images, labels)
        assert torch.equal(mixed, again[0])
        assert torch.equal(targets, again[1])
        originals = (mixed == images) | (mixed == images.roll(1, 0))
        taken.append(bool(originals.all()))
    assert 20 < sum(taken) < 40


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([{}, {"class_weights": True}, {"balanced": True}]),
)
def test_the_loss_of_guessing_is_the_lowest_that_equal_scores_for_all_images_can_have(labels, smoothing, options):
    labels = np.array(labels)
    loss = make_loss(labels, 4, label_smoothing=smoothing, **options)
    drawn = np.array([label for label in set(labels.tolist()) for _ in range(3)]) if "balanced" in options else labels
    guessing = loss.of_guessing()

    shares = loss.frequencies if loss.weights is None else loss.frequencies * loss.weights.numpy()
    best = torch.tensor(
        (1 - smoothing) * shares + smoothing / 4 * (1 if loss.weights is None else loss.weights.numpy())
    )
    scores = best.clamp(min=1e-30).log().float()
    for seed in range(20):
        moved = scores + (seed > 0) * 0.3 * torch.randn(4, generator=torch.Generator().manual_seed(seed))
        found = float(loss(moved.expand(len(drawn), 4), torch.from_numpy(drawn)))
        assert found >= guessing - 1e-5
        if seed == 0:
            assert found == pytest.approx(guessing, abs=1e-5)


def test_the_loss_has_no_weights_to_train_or_to_save():
    loss = make_loss(mixup=0.2, cutmix=1.0, class_weights=True)
    assert not list(loss.parameters())
    assert not loss.state_dict()
