"""The paper's detection results as data: the numbers of Tables 9 to 12 and how each was measured."""

from typing import NamedTuple

# The classes of VOC in the order of the paper's tables, by their names in VOC's files.
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
N_TRAIN, N_TEST = 5_011, 4_952  # images of VOC 2007: trainval to train on, test to test on

# arXiv:1406.4729v4, §4.1: the shorter sides of an image in pixels.
ONE_SCALE = (688,)
FIVE_SCALES = (480, 576, 688, 864, 1200)
SCALES_TEXT = {ONE_SCALE: "1 scale", FIVE_SCALES: "5 scales"}
# The files in configs/experiment that measure all rows of Table 9.
EXPERIMENTS = {ONE_SCALE: "table9_1scale", FIVE_SCALES: "table9_5scales"}

# Rows of Table 9, in its order: the layer whose features the SVMs have, "ft" after fine-tuning, "bb" with box
# regression.
ROWS = ("pool5", "fc6", "ftfc6", "ftfc7", "ftfc7_bb")


class DetectionTable(NamedTuple):
    """Table 9 or 10: mean average precision on VOC 2007 test in %, by row."""

    title: str
    rcnn: str  # the network of R-CNN in this table
    one_scale: dict[str, float]
    five_scales: dict[str, float]
    by_rcnn: dict[str, float]


# arXiv:1406.4729v4, Tables 9 and 10; ZF-5 with a pyramid, trained at one size. What the tables give of seconds is not
# here: docs/speed.md compares times.
TABLE9 = DetectionTable(
    title="Table 9: VOC 2007, detection with ZF-5, and R-CNN with AlexNet",
    rcnn="AlexNet",
    one_scale={"pool5": 43.0, "fc6": 42.5, "ftfc6": 52.3, "ftfc7": 54.5, "ftfc7_bb": 58.0},
    five_scales={"pool5": 44.9, "fc6": 44.8, "ftfc6": 53.7, "ftfc7": 55.2, "ftfc7_bb": 59.2},
    by_rcnn={"pool5": 44.2, "fc6": 46.2, "ftfc6": 53.1, "ftfc7": 54.2, "ftfc7_bb": 58.5},
)
TABLE10 = DetectionTable(
    title="Table 10: VOC 2007, detection with ZF-5, and R-CNN with the same network",
    rcnn="ZF-5",
    one_scale={"ftfc7": 54.5, "ftfc7_bb": 58.0},
    five_scales={"ftfc7": 55.2, "ftfc7_bb": 59.2},
    by_rcnn={"ftfc7": 55.1, "ftfc7_bb": 59.2},
)
DETECTION_TABLES = {"table9": TABLE9, "table10": TABLE10}


class ClassPrecisions(NamedTuple):
    """A row of Table 11 or 12, in %."""

    mean: float
    of_class: tuple[float, ...]  # in the order of VOC_CLASSES


def _row(mean: float, values: str) -> ClassPrecisions:
    return ClassPrecisions(mean, tuple(map(float, values.split())))


_SPP_BB = "68.6 69.7 57.1 41.2 40.5 66.3 71.3 72.5 34.4 67.3 61.7 63.1 71.0 69.8 57.6 29.7 59.0 50.2 65.2 68.0"

TABLE11_TITLE = "Table 11: VOC 2007, detection by class"
# arXiv:1406.4729v4, Table 11, as printed. The mean of the row of SS is 33.72.
TABLE11 = {
    "DPM": _row(
        33.7,
        "33.2 60.3 10.2 16.1 27.3 54.3 58.2 23.0 20.0 24.1 26.7 12.7 58.1 48.2 43.2 12.0 21.1 36.1 46.0 43.5",
    ),
    "SS": _row(
        33.8,
        "43.5 46.5 10.4 12.0 9.3 49.4 53.7 39.4 12.5 36.9 42.2 26.4 47.0 52.4 23.5 12.1 29.9 36.3 42.2 48.8",
    ),
    "Regionlet": _row(
        41.7,
        "54.2 52.0 20.3 24.0 20.1 55.5 68.7 42.6 19.2 44.2 49.1 26.6 57.0 54.5 43.4 16.4 36.6 37.7 59.4 52.3",
    ),
    "DetNet": _row(
        30.5,
        "29.2 35.2 19.4 16.7 3.7 53.2 50.2 27.2 10.2 34.8 30.2 28.2 46.6 41.7 26.2 10.3 32.8 26.8 39.8 47.0",
    ),
    "R-CNN ftfc7 (AlexNet)": _row(
        54.2,
        "64.2 69.7 50.0 41.9 32.0 62.6 71.0 60.7 32.7 58.5 46.5 56.1 60.6 66.8 54.2 31.5 52.8 48.9 57.9 64.7",
    ),
    "R-CNN ftfc7 (ZF-5)": _row(
        55.1,
        "64.8 68.4 47.0 39.5 30.9 59.8 70.5 65.3 33.5 62.5 50.3 59.5 61.6 67.9 54.1 33.4 57.3 52.9 60.2 62.9",
    ),
    "SPP-net ftfc7 (ZF-5)": _row(
        55.2,
        "65.5 65.9 51.7 38.4 32.7 62.6 68.6 69.7 33.1 66.6 53.1 58.2 63.6 68.8 50.4 27.4 53.7 48.2 61.7 64.7",
    ),
    "R-CNN bb (AlexNet)": _row(
        58.5,
        "68.1 72.8 56.8 43.0 36.8 66.3 74.2 67.6 34.4 63.5 54.5 61.2 69.1 68.6 58.7 33.4 62.9 51.1 62.5 64.8",
    ),
    "R-CNN bb (ZF-5)": _row(
        59.2,
        "68.4 74.0 54.0 40.9 35.2 64.1 74.4 69.8 35.5 66.9 53.8 64.2 69.9 69.6 58.9 36.8 63.4 56.0 62.8 64.9",
    ),
    "SPP-net bb (ZF-5)": _row(59.2, _SPP_BB),
}
TABLE11_ROWS = ("ftfc7", "ftfc7_bb")  # ours that belong beside it

TABLE12_TITLE = "Table 12: VOC 2007, detection by two networks and their combination"
# arXiv:1406.4729v4, Table 12, ftfc7 with box regression.
TABLE12 = {
    "SPP-net (1)": _row(59.2, _SPP_BB),
    "SPP-net (2)": _row(
        59.1,
        "65.7 71.4 57.4 42.4 39.9 67.0 71.4 70.6 32.4 66.7 61.7 64.8 71.7 70.4 56.5 30.8 59.9 53.2 63.9 64.6",
    ),
    "combination": _row(
        60.9,
        "68.5 71.7 58.7 41.9 42.5 67.7 72.1 73.8 34.7 67.0 63.4 66.0 72.5 71.3 58.9 32.8 60.9 56.1 67.9 68.8",
    ),
}
TABLE12_ROW = "ftfc7_bb"
