from sppnet.classify.reporting import epoch_line

EPOCH = {
    "epoch": 3,
    "size": 180,
    "train_loss": 1.23456,
    "top1_wrong": 117,
    "top5_wrong": 6,
    "n": 500,
    "images_per_second": 1234.5,
}


def test_an_epoch_is_one_line():
    assert epoch_line(EPOCH, 70, 3725) == (
        "epoch  3/70  size 180  loss 1.2346  top-1 error 23.40 %  top-5 error  1.20 %  1,234 images/s  1:02:05 left"
    )


def test_an_epoch_without_validation_shows_no_errors():
    epoch = {key: value for key, value in EPOCH.items() if key not in {"top1_wrong", "top5_wrong", "n"}}
    assert epoch_line(epoch, 70, 5) == "epoch  3/70  size 180  loss 1.2346  1,234 images/s  0:05 left"
