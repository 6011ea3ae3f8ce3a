"""Linear SVMs on frozen features: the Gram matrix in blocks, one SVM per class, and what both take of memory."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from conftest import run_process
from sppnet.transfer import probe
from sppnet.transfer.feature_files import Features
from sppnet.transfer.probe import Svm, decisions_by_features, decisions_by_gram, gram_matrix

PLENTY = 10**9


def made_features(n, d, seed=0):
    """Makes float16 features of random directions."""
    values = np.abs(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)
    values = (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)).astype(np.float16)
    return Features(Path("pool5"), values, np.ones(n, bool))


def normalized(features):
    """Returns the features in float64, of length 1."""
    values = features.values.astype(np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)


def truth_of(labels, classes):
    truth = np.full((len(labels), classes), -1, np.int8)
    truth[np.arange(len(labels)), labels] = 1
    return truth


def decisions_one_by_one(features, truth, train, test, **options):
    """The slow reference: scikit-learn's linear SVM on the features themselves, class by class."""
    rows, columns = normalized(features), []
    for label in range(truth.shape[1]):
        used = [i for i in train if truth[i, label] != 0]
        machine = SVC(kernel="linear", **options).fit(rows[used], truth[used, label])
        columns.append(machine.decision_function(rows[test]))
    return np.stack(columns, axis=1)


# The Gram matrix.


@pytest.mark.parametrize("n", [1, 7, 10, 11, 13])
@pytest.mark.parametrize("rows_per_block", [0, 1, 2, 3, 5, 7, 100])
def test_the_gram_matrix_is_the_same_in_blocks_of_any_size(n, rows_per_block):
    features = made_features(n, 5)
    gram = gram_matrix(features, memory=4 * n**2 + rows_per_block * (14 * 5 + 4 * n))
    rows = normalized(features)
    assert gram.shape == (n, n)
    assert gram.dtype == np.float32
    np.testing.assert_allclose(gram, rows @ rows.T, atol=1e-6)


def test_features_are_read_in_as_many_rows_as_memory_allows(monkeypatch):
    """Every pair of blocks once: with 11 images in blocks of 4, three blocks, and six reads."""
    features, read = made_features(11, 5), []
    rows = Features.rows
    monkeypatch.setattr(Features, "rows", lambda self, part, device="cpu": (read.append(part), rows(self, part))[1])
    gram_matrix(features, memory=4 * 11**2 + 4 * (14 * 5 + 4 * 11))
    spans = [(part.start, part.stop) for part in read]
    assert spans == [(0, 4), (4, 8), (0, 4), (8, 12), (0, 4), (4, 8)]


def test_features_of_length_1_in_float32_even_if_float16_has_them_only_nearly():
    gram = gram_matrix(made_features(40, 300), memory=PLENTY)
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-6)


def test_a_feature_of_zeros_has_products_of_zero():
    features = made_features(5, 3)
    features.values[2] = 0
    gram = gram_matrix(features, memory=PLENTY)
    assert not gram[2].any()
    assert not gram[:, 2].any()
    assert np.isfinite(gram).all()


LIMITED = """
import re, resource, sys, numpy as np
from pathlib import Path
from sppnet.transfer.feature_files import Features
from sppnet.transfer.probe import gram_matrix

memory, slack = (int(word) for word in sys.argv[1:])
values = np.load("features.npy", mmap_mode="r")
gram_matrix(Features(Path("pool5"), values[:50, :9999], np.ones(50, bool)), memory=10**7)  # loads what is loaded once
taken = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, 2 * (taken + memory + slack,))
print(gram_matrix(Features(Path("pool5"), values, np.ones(len(values), bool)), memory=memory).sum(dtype=np.float64))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit works on Linux only")
def test_more_features_than_memory(tmp_path):
    """96 MB of features, 192 MB in float32; 48 MB are allowed, and 80 more for what malloc and the BLAS keep."""
    n, d = 600, 80_000
    file = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float16, (n, d))
    file[:] = 1
    file.flush()
    # Without a fixed threshold, malloc keeps what was freed, and how much depends on the machine.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = run_process([sys.executable, "-c", LIMITED, "48000000", "80000000"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(n * n, rel=1e-4)


# SVMs on the Gram matrix.


def by_gram(features, truth, train, test, **options):
    return decisions_by_gram(gram_matrix(features, memory=PLENTY), truth, train, test, Svm(**options))


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_decisions_are_those_of_a_linear_svm_on_the_features(C, classes):  # noqa: N803
    features = made_features(61, 23)
    random = np.random.default_rng(1)
    truth = truth_of(random.permutation(np.arange(61) % classes), classes)
    order = random.permutation(61)
    train, test = order[:40], order[40:]
    values = by_gram(features, truth, train, test, C=C)
    assert values.shape == (21, classes)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, decisions_one_by_one(features, truth, train, test, C=C, tol=1e-6), atol=5e-3)


def has_one_bias(features, labels, train, C):  # noqa: N803
    """Whether the bias of an SVM is determined: where every support vector is at its limit, an interval is optimal."""
    used = [i for i in train if labels[i] != 0]
    machine = SVC(kernel="linear", C=C).fit(normalized(features)[used], labels[used])
    return bool((np.abs(machine.dual_coef_) < C * (1 - 1e-6)).any())


@settings(max_examples=30, deadline=None)
@example(480, 10, 2, 7.0)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(1, 12), st.sampled_from([0.3, 1.0, 7.0]))
def test_decisions_are_those_of_a_linear_svm_for_any_labels(seed, m, d, C):  # noqa: N803
    """With ignored labels, classes of one positive, and unbalanced ones."""
    random = np.random.default_rng(seed)
    features = made_features(m + 4, d, seed)
    truth = random.choice([-1, -1, -1, 0, 1], size=(m + 4, 3)).astype(np.int8)
    order = random.permutation(m + 4)
    train, test = order[:m], order[m:]
    truth[train[0]], truth[train[1]] = 1, -1
    expected = decisions_one_by_one(features, truth, train, test, C=C)
    found = by_gram(features, truth, train, test, C=C)
    for label in range(3):
        shift = 0.0
        if not has_one_bias(features, truth[:, label], train, C):
            shift = (found - expected)[:, label].mean()
        np.testing.assert_allclose(found[:, label] - shift, expected[:, label], atol=5e-3)


def test_an_ignored_image_changes_nothing_but_for_its_class():
    features, truth = made_features(30, 6), truth_of(np.arange(30) % 3, 3)
    train, test = np.arange(20), np.arange(20, 30)
    ignored = truth.copy()
    ignored[4, 1] = 0
    before, after = (by_gram(features, labels, train, test) for labels in (truth, ignored))
    without = np.delete(train, 4)
    assert np.array_equal(after[:, [0, 2]], before[:, [0, 2]])
    np.testing.assert_allclose(after[:, 1], by_gram(features, truth, without, test)[:, 1], atol=1e-6)
    assert not np.allclose(after[:, 1], before[:, 1], atol=1e-3)


@pytest.mark.parametrize("solve", ["gram", "features"])
def test_the_number_of_threads_changes_no_bit(solve):
    features, truth = made_features(400, 50), truth_of(np.arange(400) % 6, 6)
    truth[3, 2] = 0
    train, test = np.arange(300), np.arange(300, 400)
    if solve == "gram":
        one, two = (by_gram(features, truth, train, test, jobs=jobs) for jobs in (1, 2))
    else:
        one, two = (decisions_by_features(features, truth, train, test, Svm(C=0.1, jobs=jobs)) for jobs in (1, 2))
    assert np.array_equal(one, two)


def test_labels_that_cannot_be_separated_end_with_one_warning(monkeypatch):
    monkeypatch.setattr(probe, "_MOST_STEPS", 50)
    random = np.random.default_rng(0)
    truth = random.choice([-1, 1], size=(40, 3)).astype(np.int8)
    with pytest.warns(UserWarning, match=r"^3 SVMs stopped before converging; a smaller svm\.C") as caught:
        by_gram(made_features(40, 8), truth, np.arange(30), np.arange(30, 40), C=1e9)
    assert len(caught) == 1


# SVMs on the features themselves.


def separable_features(n, classes):
    """Features in which every class has a direction of its own."""
    labels = np.arange(n) % classes
    features = made_features(n, 2 * classes)
    features.values[:] *= 0.2
    features.values[np.arange(n), labels] += 1
    return features, labels


def test_both_solvers_find_the_same_classes():
    features, labels = separable_features(60, 4)
    truth, train, test = truth_of(labels, 4), np.arange(40), np.arange(40, 60)
    by_features = decisions_by_features(features, truth, train, test, Svm())
    assert by_features.shape == (20, 4)
    assert by_features.dtype == np.float32
    assert np.array_equal(by_features.argmax(1), labels[test])
    assert np.array_equal(by_gram(features, truth, train, test).argmax(1), labels[test])


def test_decisions_on_features_are_in_the_order_of_the_test_images_beyond_a_part(monkeypatch):
    features, labels = separable_features(2_500, 3)
    test = np.random.default_rng(0).permutation(np.arange(60, 2_500))
    values = decisions_by_features(features, truth_of(labels, 3), np.arange(60), test, Svm())
    assert np.array_equal(values.argmax(1), labels[test])


def test_an_ignored_image_is_left_out_on_features_too():
    features, truth = made_features(30, 6), truth_of(np.arange(30) % 3, 3)
    train, test = np.arange(20), np.arange(20, 30)
    ignored = truth.copy()
    ignored[4, 1] = 0
    after = decisions_by_features(features, ignored, train, test, Svm())
    without = decisions_by_features(features, truth, np.delete(train, 4), test, Svm())
    np.testing.assert_allclose(after[:, 1], without[:, 1], atol=1e-6)


def test_features_that_exceed_the_memory_are_refused_in_one_line():
    features, labels = separable_features(60, 4)  # 40 x 8 values, of 24 bytes in training
    truth, train, test = truth_of(labels, 4), np.arange(40), np.arange(40, 60)
    decisions_by_features(features, truth, train, test, Svm(gigabytes=7_681e-9))
    line = (
        r"^pool5: SVMs on the features of 40 training images take 7\.68e-06 GB, and svm\.gigabytes allows 7\.\d+e-06; "
        r"raise it, or use a layer with fewer values or fewer images$"
    )
    with pytest.raises(ValueError, match=line):
        decisions_by_features(features, truth, train, test, Svm(gigabytes=7_679e-9))


def test_solvers_that_do_not_converge_on_features_are_one_warning(monkeypatch):
    monkeypatch.setattr(probe, "_MOST_PASSES", 1)
    truth = np.random.default_rng(0).choice([-1, 1], size=(40, 3)).astype(np.int8)
    with pytest.warns(UserWarning, match=r"^3 SVMs stopped before converging; a smaller svm\.C") as caught:
        decisions_by_features(made_features(40, 8), truth, np.arange(30), np.arange(30, 40), Svm(C=1000))
    assert len(caught) == 1


def test_other_warnings_of_solvers_are_passed_on():
    with pytest.warns(RuntimeWarning, match="strange"):
        probe._for_every_class(lambda label: warnings.warn("strange", RuntimeWarning, stacklevel=1), 2, 1)


def test_an_error_of_one_class_is_raised():
    def fails(label):
        if label == 1:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        probe._for_every_class(fails, 3, 2)


# What both take of memory.


@pytest.mark.parametrize(
    ("images", "training", "bytes_needed"),
    [(1_000, 100, 8_000_000), (1_000, 999, 4_000_000 + 20 * 999**2), (9_144, 3_060, 8 * 9_144**2)],
)
def test_a_gram_matrix_fits_with_what_is_made_of_it(images, training, bytes_needed):
    assert Svm(gigabytes=(bytes_needed + 1) / 1e9).gram_fits(images, training)
    assert not Svm(gigabytes=(bytes_needed - 1) / 1e9).gram_fits(images, training)


@pytest.mark.parametrize(("gigabytes", "threads"), [(1e-9, 1), (500e-9, 1), (700e-9, 3), (900e-9, 4), (1.0, 4)])
def test_as_many_classes_are_trained_at_once_as_memory_allows(gigabytes, threads):
    """400 bytes for all, 100 for each, and four jobs."""
    assert probe._affordable(Svm(jobs=4, gigabytes=gigabytes), 400, 100) == threads


def test_classes_are_trained_one_after_the_other_where_memory_is_short(monkeypatch):
    """At once, copies of the kernel without ignored images would take the memory once per class."""
    asked = []
    original = probe._for_every_class

    def notes(fit, classes, threads):
        asked.append(threads)
        original(fit, classes, threads)

    monkeypatch.setattr(probe, "_for_every_class", notes)
    features, truth = made_features(60, 20), truth_of(np.arange(60) % 6, 6)
    gram = gram_matrix(features, memory=PLENTY)
    split = (truth, np.arange(40), np.arange(40, 60))
    fits = 4 * 60**2 + 20 * 40**2
    for memory in (fits, fits + 12 * 40**2, PLENTY):
        decisions_by_gram(gram, *split, Svm(jobs=4, gigabytes=memory / 1e9))
    assert asked == [1, 2, 4]


def virtual_memory():
    """Returns the bytes of memory of the machine."""
    return 1024 * int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_without_a_limit_a_quarter_of_the_machine_is_used():
    assert Svm().memory == pytest.approx(virtual_memory() / 4, rel=0.01)
    assert Svm(gigabytes=0.5).memory == 500_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0.0}, r"^svm\.C=0\.0: must be a number above 0, and finite$"),
        ({"C": -1.0}, r"^svm\.C=-1\.0: must be a number above 0, and finite$"),
        ({"C": float("nan")}, r"^svm\.C=nan: must be a number above 0, and finite$"),
        ({"C": float("inf")}, r"^svm\.C=inf: must be a number above 0, and finite$"),
        ({"jobs": 0}, r"^svm\.jobs=0: must be from 1 to 1024"),
        ({"jobs": 1025}, r"^svm\.jobs=1025: must be from 1 to 1024"),
        ({"gigabytes": 0.0}, r"^svm\.gigabytes=0\.0: must be a number above 0, and below 1,000,000$"),
        ({"gigabytes": float("nan")}, r"^svm\.gigabytes=nan: must be a number above 0, and below 1,000,000$"),
        ({"gigabytes": float("inf")}, r"^svm\.gigabytes=inf: must be a number above 0, and below 1,000,000$"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Svm(**options)
