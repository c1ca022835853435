"""Mean ranks: those of Meta-Dataset's own leaderboard, and a case by hand."""

import re

import numpy as np
import pytest

from jaxmeta.training import Report, mean_ranks

# "Training on ImageNet only", mean±interval(rank), in the README of https://github.com/google-research/meta-dataset:
# the first six of ten sources, ImageNet, Omniglot, Aircraft, Birds, Textures, QuickDraw.
LEADERBOARD = """
k-NN 41.03±1.01(15) 37.07±1.15(16) 46.81±0.89(15) 50.13±1.00(15.5) 66.36±0.75(13) 32.06±1.08(16)
Finetune 45.78±1.10(13) 60.85±1.58(11.5) 68.69±1.26(5) 57.31±1.26(14) 69.05±0.90(9.5) 42.60±1.17(13.5)
MatchingNet 45.00±1.10(13) 52.27±1.28(14) 48.97±0.93(13) 62.21±0.95(12.5) 64.15±0.85(15) 42.87±1.09(13.5)
ProtoNet 50.50±1.08(10.5) 59.98±1.35(11.5) 53.10±1.00(10.5) 68.79±1.01(8.5) 66.56±0.83(13) 48.96±1.08(11)
fo-MAML 45.51±1.11(13) 55.55±1.54(13) 56.24±1.11(8.5) 63.61±1.06(12.5) 68.04±0.81(9.5) 43.96±1.29(13.5)
RelationNet 34.69±1.01(16) 45.35±1.36(15) 40.73±0.83(16) 49.51±1.05(15.5) 52.97±0.69(16) 43.30±1.08(13.5)
fo-Proto-MAML 49.53±1.05(10.5) 63.37±1.33(8.5) 55.95±0.99(8.5) 68.66±0.96(8.5) 66.49±0.83(13) 51.52±1.00(9.5)
ALFA+fo-Proto-MAML 52.80±1.11(8.5) 61.87±1.51(8.5) 63.43±1.10(6) 69.75±1.05(6.5) 70.78±0.88(7) 59.17±1.16(5.5)
ProtoNet_large 53.69±1.07(6) 68.50±1.27(5.5) 58.04±0.96(7) 74.07±0.92(4.5) 68.76±0.77(9.5) 53.30±1.06(8)
CTX 62.76±0.99(2.5) 82.21±1.00(2.5) 79.49±0.89(2.5) 80.63±0.88(3) 75.57±0.64(4) 72.68±0.82(2)
BOHB 51.92±1.05(8.5) 67.57±1.21(5.5) 54.12±0.90(10.5) 70.69±0.90(6.5) 68.34±0.76(9.5) 50.33±1.04(9.5)
SimpleCNAPS 54.80±1.20(6) 62.00±1.30(8.5) 49.20±0.90(13) 66.50±1.00(10.5) 71.60±0.70(5.5) 56.60±1.00(7)
TransductiveCNAPS 54.10±1.10(6) 62.90±1.30(8.5) 48.40±0.90(13) 67.30±0.90(10.5) 72.50±0.70(5.5) 58.00±1.00(5.5)
TSA_resnet18 59.50±1.10(4) 78.20±1.20(4) 72.20±1.00(4) 74.90±0.90(4.5) 77.30±0.70(3) 67.60±0.90(4)
TSA_resnet34 63.73±0.99(2.5) 82.58±1.11(2.5) 80.13±1.01(2.5) 83.39±0.80(2) 79.61±0.68(2) 71.03±0.84(3)
DIPA 71.40±0.90(1) 84.30±1.20(1) 86.70±1.00(1) 88.20±0.90(1) 87.10±0.60(1) 74.60±0.80(1)
"""
SOURCES = ("ImageNet", "Omniglot", "Aircraft", "Birds", "Textures", "QuickDraw")


def report(means, ci95s, metric="accuracy", sources=SOURCES):
    """Two tasks of each source, which have this mean and this interval: m ± d have the standard error d."""
    pairs = [[mean - ci95 / 1.96, mean + ci95 / 1.96] for mean, ci95 in zip(means, ci95s, strict=True)]
    return Report({metric: np.array(pairs).reshape(-1, 1)}, sources=[name for name in sources for _ in range(2)])


def test_the_leaderboard_of_meta_dataset_comes_out():
    lines = [line.split() for line in LEADERBOARD.strip().splitlines()]
    found = {name: np.array([re.findall(r"[\d.]+", cell) for cell in cells], float) for name, *cells in lines}
    ranks = mean_ranks({name: report(*of.T[:2]) for name, of in found.items()}, "accuracy", best="highest")
    expected = np.stack([of[:, 2] for of in found.values()], axis=1)
    assert ranks.rank.shape == (6, 16) and ranks.sources == SOURCES
    np.testing.assert_array_equal(ranks.rank, expected)
    np.testing.assert_allclose(list(ranks.mean_rank.values()), expected.mean(axis=0))
    assert repr(ranks).startswith("Ranks(accuracy on 6 sources; mean rank DIPA 1, ")


def test_ties_go_to_the_best_that_is_left_and_are_no_chain():
    """a = .9, b = .8, c = .7, each ± .08: √2 · .08 = .113 ties a with b and b with c, and a is not c's equal."""
    reports = {name: report([mean], [0.08], sources=["only"]) for name, mean in (("c", 0.7), ("a", 0.9), ("b", 0.8))}
    assert mean_ranks(reports, "accuracy", best="highest").mean_rank == {"c": 3, "a": 1.5, "b": 1.5}
    assert mean_ranks(reports, "accuracy", best="lowest").mean_rank == {"c": 1.5, "a": 3, "b": 1.5}


def test_sources_are_those_of_a_name_whatever_their_order():
    here, there = report([0.9, 0.2], [0.1, 0.1], sources="xy"), report([0.3, 0.8], [0.1, 0.1], sources="yx")
    ranks = mean_ranks({"here": here, "there": there}, "accuracy", best="highest")
    np.testing.assert_allclose(ranks.mean, [[0.9, 0.8], [0.2, 0.3]])


def test_it_is_the_last_unit_that_counts_and_who_diverged_is_last():
    curve = lambda *last: Report({"mse": np.array([[5.0, value] for value in last])}, sources=["x", "x"])
    reports = {"bad": curve(9, 9), "gone": curve(1, np.nan), "good": curve(1, 1), "away": curve(np.inf, 1)}
    ranks = mean_ranks(reports, "mse", best="lowest")
    assert ranks.mean_rank == {"bad": 2, "gone": 3.5, "good": 1, "away": 3.5}
    lines = str(ranks).splitlines()
    assert lines[0].split() == ["mse", *reports] and lines[2].split() == ["mean", "rank", "2", "3.5", "1", "3.5"]
    assert "- (3.5)" in lines[1] and "9.0000 ± 0.0000 (2)" in lines[1]
    assert "<th>mean rank</th><td>2</td>" in ranks._repr_html_()


ONE = report([0.5], [0.1], sources=["x"])


@pytest.mark.parametrize(
    ("reports", "metric", "match"),
    [
        ({}, "accuracy", "reports must be a dictionary"),
        ([ONE], "accuracy", "reports must be a dictionary"),
        ({"maml": 5}, "accuracy", r"reports\['maml'\] must be a Report"),
        ({"maml": ONE._replace(sources=None)}, "accuracy", r"reports\['maml'\] must be of several sources"),
        (
            {"maml": ONE, "anil": report([1], [1], sources=["y"])},
            "accuracy",
            "same sources, got .*'x'.*'y'.* of 'anil'",
        ),
        ({"maml": ONE}, "mse", "metric must be one of accuracy for 'maml', got 'mse'"),
        ({"maml": Report({"mse": np.ones((1, 1))}, sources=["x"])}, "mse", "two tasks of each source .* one of 'x'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(reports, metric, match):
    with pytest.raises(ValueError, match=match):
        mean_ranks(reports, metric, best="highest")
