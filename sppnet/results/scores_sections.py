"""Sections of a page about the scores of one protocol: errors by class, confusions, the worst mistakes, calibration."""

import numpy as np

from sppnet.results.calibration import BINS, Calibration, are_probabilities, calibration
from sppnet.results.comparisons import Rows, confusion_matrix, gain_text, percent, wrong
from sppnet.results.mistakes import Confusion, Rate, class_rates, confusions, worst_mistakes
from sppnet.results.page import Page
from sppnet.results.plots import Estimate, confusion_plot
from sppnet.results.report_plots import class_errors, reliability
from sppnet.results.scores import Scores
from sppnet.results.tested_images import TestedImages

_PAIRS, _PAIRS_WITH_IMAGES, _IMAGES_OF_PAIR = 20, 6, 5
_WORST = 24
_MOST_ROWS, _FIRST_ROWS, _LAST_ROWS = 60, 40, 20  # of a plot by class: of more classes, the ends
_MOST_IN_MATRIX = 40  # classes, whose names can then be read
_THUMBNAIL_WIDTH = 160
OVER_IMAGES = "95 % intervals over images only"


def add_scores(page: Page, scores: Scores, tested: TestedImages | None) -> None:
    """Adds all that is shown of one protocol: errors by class, confusions, the worst mistakes, calibration.

    Args:
        page: to add to.
        scores: by the protocol.
        tested: the images of the scores; None: thumbnails are left out.

    Raises ValueError if the scores do not name all classes.
    """
    classes = scores.about.get("classes")
    if not isinstance(classes, list) or len(classes) != scores.scores.shape[1]:
        raise ValueError(f"{scores.about.get('run')}: scores of {scores.scores.shape[1]} classes without their names")
    _add_classes(page, scores)
    _add_confusions(page, scores, tested)
    _add_worst(page, scores, tested)
    _add_calibration(page, scores)


# Errors by class.


def _add_classes(page: Page, scores: Scores) -> None:
    """Adds the errors by class, worst first: a plot, and a table that can be unfolded."""
    classes, rates = scores.about["classes"], class_rates(scores)
    page.heading("Errors by class")
    everything = Rate.of(wrong(scores).sum(), len(scores.labels))
    page.text(
        f"{everything.text} % of all {everything.n:,} images are wrong. The fewer images a class has, the more its "
        "place in this order is by chance."
    )
    rows = list(rates.items())
    many = len(rows) > _MOST_ROWS
    shown = rows[:_FIRST_ROWS] + rows[-_LAST_ROWS:] if many else rows
    named = [(classes[label], Estimate.of(rate.share, (rate.low, rate.high))) for label, rate in shown]
    figure = class_errors(named, 100 * everything.share, _FIRST_ROWS if many else None)
    part = f"The {_FIRST_ROWS} worst and the {_LAST_ROWS} best of {len(rows)} classes" if many else "All classes"
    page.figure(figure, "top-1 error by class", f"{part}, {_protocol_text(scores)}, {OVER_IMAGES} (Wilson).")
    page.table(*classes_table(scores), folded=f"Table of all {len(rows)} classes")


def classes_table(scores: Scores) -> Rows:
    """Tabulates the error per class with its interval, worst first, with the class it is taken for most often."""
    classes, matrix = scores.about["classes"], confusion_matrix(scores)
    np.fill_diagonal(matrix, 0)
    headers = ["class", "images", "wrong", "top-1 error in % (95 % interval)", "most often taken for"]
    rows = []
    for label, rate in class_rates(scores).items():
        others = matrix[label]
        taken_for = f"{classes[others.argmax()]} ({others.max()})" if others.max() else ""
        rows.append([classes[label], f"{rate.n:,}", f"{rate.wrong:,}", rate.text, taken_for])
    return headers, rows


# Mistakes.


def _add_confusions(page: Page, scores: Scores, tested: TestedImages | None) -> None:
    """Adds the pairs of classes that are confused most, with images of the first ones, and a matrix of few classes."""
    classes, pairs = scores.about["classes"], confusions(scores, _PAIRS)
    if not pairs:
        page.text("No image is classified wrongly.")
        return

    page.heading("Confusions")
    rows = []
    for pair in pairs:
        counts = [f"{pair.rate.wrong:,}", f"{pair.rate.n:,}"]
        rows.append([classes[pair.label], classes[pair.taken_for], *counts, pair.rate.text])
    page.table(["class", "taken for", "images", "of", "share of the class in % (95 % interval)"], rows)

    if tested is not None:
        for pair in pairs[:_PAIRS_WITH_IMAGES]:
            _add_pair(page, pair, scores, tested)
    if len(classes) <= _MOST_IN_MATRIX:
        figure = confusion_plot(confusion_matrix(scores), classes)
        caption = f"{_protocol_text(scores)}, in % of the images of each true class."
        page.figure(figure, f"confusion matrix of {len(classes)} classes", caption)


def _add_pair(page: Page, pair: Confusion, scores: Scores, tested: TestedImages) -> None:
    """Adds images of one pair of classes, those of the highest wrong score first."""
    classes = scores.about["classes"]
    page.text(f"{classes[pair.label]}, taken for {classes[pair.taken_for]}:")
    page.pictures(_thumbnails(pair.images[:_IMAGES_OF_PAIR], scores, tested), width=_THUMBNAIL_WIDTH)


def _add_worst(page: Page, scores: Scores, tested: TestedImages | None) -> None:
    """Adds the images whose highest score exceeds that of their class most."""
    worst = worst_mistakes(scores, _WORST)
    if not len(worst):
        return
    page.heading("Worst mistakes")
    page.text(
        "The images whose highest score exceeds the score of their true class most, with both scores. Some may be "
        "labelled wrongly."
    )
    if tested is not None:
        page.pictures(_thumbnails(worst, scores, tested), width=_THUMBNAIL_WIDTH)
    headers = ["image", "true class", "its score", "taken for", "its score"]
    page.table(headers, [_mistake_row(scores, index) for index in worst], folded=f"Names of these {len(worst)} images")


def _mistake_row(scores: Scores, index: int) -> list[str]:
    classes, values, label = scores.about["classes"], scores.scores[index], scores.labels[index]
    highest = int(values.argmax())
    true, taken_for = f"{values[label]:.3f}", f"{values[highest]:.3f}"
    return [str(scores.names[index]), classes[label], true, classes[highest], taken_for]


def _thumbnails(indices: np.ndarray, scores: Scores, tested: TestedImages) -> list[tuple[bytes, str]]:
    """Returns images with their true class, the class they are taken for, and both scores. Skips unreadable ones."""
    pictures = []
    for index in map(int, indices):
        _, true, true_score, taken_for, score = _mistake_row(scores, index)
        if (picture := tested.thumbnail(index)) is not None:
            pictures.append((picture, f"{true} {true_score[:-1]}, taken for {taken_for} {score[:-1]}"))
    return pictures


# Calibration.


def _add_calibration(page: Page, scores: Scores) -> None:
    """Adds the reliability diagram and the expected calibration error."""
    page.heading("Calibration")
    if not are_probabilities(scores):
        page.text("These scores are not probabilities, so there is nothing to calibrate.")
        return
    result = calibration(scores)
    page.text(_calibration_text(result))
    page.figure(
        reliability(result),
        "share of images classified rightly against their highest score",
        f"{_protocol_text(scores)}, {BINS} bins of equal width by the highest score of an image; {OVER_IMAGES} "
        "(Wilson). Dashed: scores that are right as often as they say.",
    )


def _calibration_text(result: Calibration) -> str:
    mean, most = result.chance
    return (
        "The mean highest score minus the share of images that are classified rightly is, in points, "
        f"{gain_text(result.excess, *result.excess_interval)}, with its 95 % interval over images only; a positive "
        f"difference is overconfidence. Expected calibration error: {percent(result.error)} %, the mean over images of "
        "how far the share of right ones in their bin is from the mean highest score there. On as many images, scores "
        f"that are true probabilities would have {percent(mean)} % by chance, and more than {percent(most)} % in one "
        "test of twenty."
    )


# Texts.


def _protocol_text(scores: Scores) -> str:
    return f"{len(scores.labels):,} images by {scores.about.get('views')}"
