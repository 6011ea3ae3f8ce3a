"""The paper's transfer results as data: the numbers of Tables 6, 7 and 8 and where each was measured."""

from typing import NamedTuple


class TransferColumn(NamedTuple):
    """A column of Table 6 or 7: one network trained on ImageNet, and one view of the images of another data set."""

    letter: str  # as the paper has it; the section for a number of the text
    architecture: str  # a key of BACKBONES
    variant: str  # a key of VARIANTS
    view: str  # "crop": the centre 224 x 224; "full": the whole image; "warp": the image resized to 224 x 224
    scale: int  # shorter side of the image in pixels
    numbers: dict[str, float]  # layer -> mAP or accuracy in %
    experiment: str  # the file in configs/experiment that measures it


class TransferTable(NamedTuple):
    """Table 6 or 7: its columns, and the images that they were measured on."""

    title: str
    source: str  # of the data
    several_labels: bool  # of an image: the numbers are mean average precisions, else accuracies
    classes: int
    n_train: int  # training images of a split
    n_test: int | None  # test images of a split, if the paper gives their number
    test_per_class: int | None  # at most so many are tested of a class; None: all
    protocol: str  # what a reader should know of the numbers
    columns: tuple[TransferColumn, ...]


# arXiv:1406.4729v4, Tables 6 and 7, and §3.3 for the warped image. The paper's pool5/7 (6x6) is pool5_6x6 here, its SPP
# pool5/7 is pool5, fc6/8 is fc6 and fc7/9 is fc7. Which sizes the networks of ZF-5 were trained at: v1, §3.2.
VOC2007 = TransferTable(
    title="Table 6: VOC 2007, classification by SVMs on frozen features",
    source="voc2007",
    several_labels=True,
    classes=20,
    n_train=5_011,
    n_test=4_952,
    test_per_class=None,
    protocol="5,011 training and 4,952 test images, one split. The paper does not say which average precision it "
    "gives; recall at 11 points is that of VOC 2007. Labels of 0 are left out.",
    columns=(
        TransferColumn(
            "(a)",
            "zf5",
            "none",
            "crop",
            224,
            {"conv4": 59.96, "conv5": 66.34, "pool5_6x6": 69.14, "fc6": 74.86, "fc7": 75.90},
            "table6_zf5_none_crop224",
        ),
        TransferColumn(
            "(b)",
            "zf5",
            "alternate",
            "crop",
            224,
            {"conv4": 57.28, "conv5": 65.43, "pool5_6x6": 68.76, "fc6": 75.55, "fc7": 76.45},
            "table6_zf5_crop224",
        ),
        TransferColumn(
            "(c)",
            "zf5",
            "alternate",
            "full",
            224,
            {"pool5_6x6": 70.82, "fc6": 77.32, "fc7": 78.39},
            "table6_zf5_full224",
        ),
        TransferColumn(
            "(d)",
            "zf5",
            "alternate",
            "full",
            392,
            {"pool5_6x6": 71.67, "fc6": 78.78, "fc7": 80.10},
            "table6_zf5_full392",
        ),
        TransferColumn(
            "(e)",
            "overfeat7",
            "alternate",
            "full",
            364,
            {"pool5_6x6": 76.09, "fc6": 81.58, "fc7": 82.44},
            "table6_overfeat7_full364",
        ),
    ),
)

CALTECH101 = TransferTable(
    title="Table 7: Caltech-101 by SVMs on frozen features",
    source="caltech101",
    several_labels=False,
    classes=102,  # with the background
    n_train=102 * 30,
    n_test=None,
    test_per_class=50,
    protocol="30 training and at most 50 test images of each of 102 categories, 10 random splits in the paper. The "
    "paper does not say whether its accuracy is that of all images or the mean over categories.",
    columns=(
        TransferColumn(
            "(a)",
            "zf5",
            "none",
            "crop",
            224,
            {"conv4": 80.12, "conv5": 84.40, "pool5_6x6": 87.98, "fc6": 87.86, "fc7": 85.30},
            "table7_zf5_none_crop224",
        ),
        TransferColumn(
            "(b)",
            "zf5",
            "alternate",
            "crop",
            224,
            {"conv4": 81.03, "conv5": 83.76, "pool5_6x6": 87.60, "pool5": 89.47, "fc6": 88.54, "fc7": 86.10},
            "table7_zf5_crop224",
        ),
        TransferColumn(
            "(c)",
            "zf5",
            "alternate",
            "full",
            224,
            {"pool5_6x6": 89.46, "pool5": 91.44, "fc6": 89.50, "fc7": 87.08},
            "table7_zf5_full224",
        ),
        TransferColumn(
            "(d)",
            "overfeat7",
            "alternate",
            "full",
            224,
            {"pool5_6x6": 91.46, "pool5": 93.42, "fc6": 91.83, "fc7": 90.00},
            "table7_overfeat7_full224",
        ),
        TransferColumn("§3.3", "zf5", "alternate", "warp", 224, {"pool5": 89.91}, "table7_zf5_warp224"),
    ),
)

TRANSFER_TABLES = {"table6": VOC2007, "table7": CALTECH101}

# Features per image of the paper's networks, by which narrower ones are told apart.
LENGTHS = {
    "zf5": {"pool5_6x6": 256 * 36, "pool5": 256 * 50, "fc6": 4096, "fc7": 4096},
    "zf5, crop": {"conv4": 384 * 13 * 13, "conv5": 256 * 13 * 13},
    "overfeat7": {"pool5_6x6": 512 * 36, "pool5": 512 * 50, "fc6": 4096, "fc7": 4096},
}

TABLE8_TITLE = "Table 8: VOC 2007 and Caltech-101, other methods and ours"
# Table 8: method -> (mAP on VOC 2007, accuracy on Caltech-101 with its standard deviation), as printed.
TABLE8 = {
    "VQ (reported by Chatfield et al. 2011)": ("56.07", "74.41 ± 1.0"),
    "LLC (reported by Chatfield et al. 2011)": ("57.66", "76.95 ± 0.4"),
    "FK (reported by Chatfield et al. 2011)": ("61.69", "77.78 ± 0.6"),
    "DeCAF": ("-", "86.91 ± 0.7"),
    "Zeiler and Fergus (VOC: Table 6 (a))": ("75.90", "86.5 ± 0.5"),
    "Oquab et al.": ("77.7", "-"),
    "Chatfield et al. 2014": ("82.42", "88.54 ± 0.3"),
    "the paper: Overfeat-7, SPP": ("82.44", "93.42 ± 0.5"),
}
