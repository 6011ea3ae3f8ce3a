"""The best epoch and early stopping, beside slow and obvious definitions."""

from hypothesis import given
from hypothesis import strategies as st

from sppnet.classify.best import best_epoch, result_epoch, stop_reason


def history(errors, losses=None):
    """Epochs with so many wrong of 10 images; None: not validated."""
    losses = losses or [0.5] * len(errors)
    return [
        {"epoch": i + 1} if wrong is None else {"epoch": i + 1, "top1_wrong": wrong, "n": 10, "val_loss": loss}
        for i, (wrong, loss) in enumerate(zip(errors, losses, strict=True))
    ]


def test_the_best_epoch_has_the_lowest_error_then_the_lowest_loss_then_comes_first():
    assert best_epoch([]) is None
    assert best_epoch(history([None])) is None
    assert best_epoch(history([5, 3, 4])) == 1
    assert best_epoch(history([None, 3, None, 2, None])) == 3
    assert best_epoch(history([3, 3, 3], [0.3, 0.1, 0.2])) == 1
    assert best_epoch(history([3, 3, 3], [0.3, 0.1, 0.1])) == 1


def stops_by_definition(errors, patience):
    """Counts, epoch after epoch, how many came without a lower error."""
    lowest, waited = 11, 0
    for wrong in errors:
        waited = 0 if wrong < lowest else waited + 1
        lowest = min(lowest, wrong)
        if waited >= patience:
            return True
    return False


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(1, 4))
def test_training_stops_after_the_patience_and_not_before(errors, patience):
    """Asked after every epoch, as training does."""
    for n in range(len(errors) + 1):
        stops = stop_reason(history(errors[:n]), patience) is not None
        assert stops == stops_by_definition(errors[:n], patience)
        if stops:
            break
    assert stop_reason(history(errors), None) is None


def test_an_epoch_whose_validation_is_still_to_come_stops_nothing():
    assert stop_reason(history([3, 3]), 2) is None
    assert stop_reason(history([3, 3, None]), 2) is None
    assert stop_reason(history([3, 3, 3]), 2) == "no lower validation error in 2 epochs (recipe.stop_patience)"
    assert stop_reason(history([3, 3]), 1) == "no lower validation error in 1 epoch (recipe.stop_patience)"


def test_the_result_is_the_last_epoch_or_the_best_one_of_a_run_that_stops_early():
    assert result_epoch(history([1, 3]), 2, None) == 1
    assert result_epoch(history([1, 3]), 2, 1) == 1  # all epochs were trained
    assert result_epoch(history([1, 3]), 3, 1) == 0
    assert result_epoch(history([1, 3]), 3, 2) is None
    assert result_epoch(history([1, None]), 2, None) is None
    assert result_epoch([], 2, None) is None
