"""Pictures show what they are given: the numbers are read back from the figures."""

import itertools
import pickle
import runpy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from jaxmeta import plotting
from jaxmeta.training import Report
from jaxmeta.training.history import History

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def test_learning_curve_draws_the_values():
    steps, values = np.arange(10, 60, 10), np.array([5.0, 4.0, 3.5, 3.0, 2.9])
    (axes,) = plotting.learning_curve(steps, values, "mse", "a run").axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([steps, values], axis=1))
    assert axes.get_title() == "a run" and axes.get_yscale() == "linear"


def test_learning_curve_over_decades_is_logarithmic():
    (axes,) = plotting.learning_curve(np.arange(3), np.array([100.0, 10.0, 1.0]), "mse", "a run").axes
    assert axes.get_yscale() == "log"


def test_a_report_is_drawn_with_mean_interval_and_median():
    samples = np.array([[2.0, 0.7, 0.4], [4.0, 1.3, 0.6]])
    found = Report({"mse": samples, "loss": 2 * samples})
    figure = plotting.report(found, adaptation="episode")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mse on test tasks", "loss on test tasks"]
    for axes, values in zip(figure.axes, (samples, 2 * samples), strict=True):
        mean, median = (line.get_ydata() for line in axes.lines if not line.get_label().startswith("_"))
        np.testing.assert_allclose(mean, values.mean(axis=0))
        np.testing.assert_allclose(median, np.median(values, axis=0))
        low, high = axes.containers[0].lines[1]  # the caps
        ci95 = 1.96 * np.abs(values[0] - values[1]) / 2  # 1.96 s / √2, and s is the difference over √2
        np.testing.assert_allclose(low.get_ydata(), mean - ci95)
        np.testing.assert_allclose(high.get_ydata(), mean + ci95)
        assert axes.get_xlabel() == "episode"
    assert len(plotting.report(found, names=["loss"]).axes) == 1


def constant(*mean):
    return Report({"return": np.array([mean, mean])})


def test_a_report_is_drawn_beside_what_it_is_compared_with():
    references = {"random": constant(0.5), "from scratch, rate x1": constant(1.0, 1.5)}
    (axes,) = plotting.report(constant(1.0, 2.0), references=references).axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(drawn["random"], [0.5, 0.5])  # a line across
    np.testing.assert_array_equal(drawn["from scratch, rate x1"], [1.0, 1.5])
    with pytest.raises(ValueError, match="names must be of metrics that there are, return, got 'mse'"):
        plotting.report(constant(1.0), names=["mse"])


def test_adaptation_curves_draw_the_mean_and_interval_of_each_report():
    rng = np.random.default_rng(0)
    samples = {"MAML": rng.normal(size=(20, 4)), "mine": rng.normal(size=(20, 3)), "random": rng.normal(size=(20, 1))}
    reports = {name: Report({"return": values, "own": values}) for name, values in samples.items()}
    figure = plotting.adaptation_curves(reports, names=["return"], adaptation="episode")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("episode", "return on test tasks")
    assert figure.get_suptitle() == "20 test tasks" and [text.get_text() for text in legend(figure)] == list(samples)
    drawn = {line.get_label(): line for line in axes.lines}
    ci95 = {name: 1.96 * values.std(axis=0, ddof=1) / np.sqrt(20) for name, values in samples.items()}
    for container, name in zip(axes.containers, ["MAML", "mine"], strict=True):
        mean = samples[name].mean(axis=0)
        np.testing.assert_allclose(drawn[name].get_ydata(), mean)
        low, high = container.lines[1]
        np.testing.assert_allclose(low.get_ydata(), mean - ci95[name])
        np.testing.assert_allclose(high.get_ydata(), mean + ci95[name])
        np.testing.assert_allclose(low.get_xdata(), drawn[name].get_xdata())
        assert np.all(np.abs(low.get_xdata() - np.arange(len(mean))) < 0.2)  # beside each other, at their step
    assert drawn["MAML"].get_xdata()[0] != drawn["mine"].get_xdata()[0]
    across, (span,) = drawn["random"], axes.patches
    np.testing.assert_allclose(across.get_ydata(), 2 * [samples["random"].mean()])
    np.testing.assert_allclose(span.get_y(), samples["random"].mean() - ci95["random"][0])
    np.testing.assert_allclose(span.get_height(), 2 * ci95["random"][0])
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]


def test_of_many_steps_the_numbers_have_room_and_the_interval_is_a_band():
    many = Report({"mse": np.random.default_rng(0).normal(size=(20, 101))})
    for figure in (plotting.adaptation_curves({"long": many}), plotting.report(many)):
        (axes,) = figure.axes
        ticks = axes.get_xticks()
        assert 3 < len(ticks) < 15 and np.all(ticks == np.round(ticks))
        assert not axes.containers and len(axes.collections) == 1


def test_adaptation_curves_say_of_how_many_tasks_they_are_where_they_differ():
    figure = plotting.adaptation_curves(
        {"MAML": Report({"mse": np.ones((5, 2))}), "mine": Report({"mse": np.ones((3, 2))})}
    )
    assert [text.get_text() for text in legend(figure)] == ["MAML, 5 tasks", "mine, 3 tasks"]
    assert figure.get_suptitle() == ""


def test_adaptation_curves_have_a_gap_where_a_task_diverged():
    found = Report({"mse": np.array([[1.0, np.inf, 1.0], [2.0, 1.0, 0.0]])})
    (axes,) = plotting.adaptation_curves({"MAML": found}).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.5, np.nan, 0.5])


@pytest.mark.parametrize(
    ("reports", "names", "said"),
    [
        ({}, None, "reports must have at least one entry"),
        ({"MAML": np.ones((2, 3))}, None, r"reports\['MAML'\] must be a Report.*got float64\[2, 3\]"),
        (
            {"MAML": Report({"mse": np.ones(3)})},
            None,
            r"mse of reports\['MAML'\] must have the shape \[num_tasks, K \+ 1\]",
        ),
        ({"MAML": Report({"mse": np.ones((2, 3))})}, ["loss"], "'MAML' has mse, got 'loss'"),
        (
            {"MAML": Report({"mse": np.ones((2, 3))}), "mine": Report({"loss": np.ones((2, 3))})},
            None,
            "must have a metric in common.*'MAML': mse; 'mine': loss",
        ),
        (
            {"MAML": Report({"return": np.ones((2, 3))}), "PEARL": Report({"return": np.ones((2, 3))}, unit="episode")},
            None,
            "'MAML': step; 'PEARL': episode: say what the axis counts",
        ),
    ],
)
def test_adaptation_curves_say_what_is_wrong(reports, names, said):
    with pytest.raises(ValueError, match=said):
        plotting.adaptation_curves(reports, names=names)


def test_what_does_not_adapt_has_no_unit():
    reports = {
        "RL²": Report({"return": np.ones((2, 3))}, unit="episode"),
        "random": Report({"return": np.ones((2, 1))}),
    }
    (axes,) = plotting.adaptation_curves(reports).axes
    assert axes.get_xlabel() == "episode of adaptation"


def test_what_has_one_point_is_a_line_across():
    """A curve of one point shows nothing, or a dot in an empty picture."""
    (of_report,) = plotting.report(constant(3.0), references={"random": constant(0.5)}).axes
    (of_lines,) = plotting.lines({"RL²": np.array([3.0])}, "pull", "regret", "a run").axes
    (of_run,) = plotting.learning_curve(np.array([1]), np.array([3.0]), "mse", "a run").axes
    (of_history,) = plotting.history({"loss": np.array([3.0])}).axes
    for axes in (of_report, of_lines, of_run, of_history):
        assert all(line.get_xdata() == [0, 1] and len(set(line.get_ydata())) == 1 for line in axes.lines)
        assert axes.lines[0].get_ydata()[0] == 3.0 and not len(axes.get_xticks())


def test_a_history_is_drawn_metric_by_metric_and_thinned_to_means():
    values = np.random.default_rng(0).normal(size=1000)
    figure = plotting.history({"loss": values, "is_finite": np.ones(1000, bool)}, num_points=10, first_step=500)
    (axes,) = figure.axes
    expected = np.stack([500 + np.arange(100, 1001, 100), values.reshape(10, 100).mean(axis=1)], axis=1)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), expected)
    (whole,) = plotting.history({"loss": values[:7], "mse": values[:7]}, names=["mse"], title="a run").axes
    np.testing.assert_allclose(whole.lines[0].get_xydata(), np.stack([np.arange(1, 8), values[:7]], axis=1))


def test_a_history_of_seeds_is_drawn_as_median_and_middle_half():
    values = np.array([0.0, 1.0, 2.0, 3.0, 100.0])[:, None] + np.arange(4.0)
    (axes,) = plotting.history({"loss": values}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 2 + np.arange(4))
    (band,) = axes.collections
    vertices = {(x, y) for x, y in band.get_paths()[0].vertices}
    assert vertices == {(1 + k, low + k) for k in range(4) for low in (1, 3)}


def test_validation_stands_beside_training():
    found = {"step": np.array([50, 100]), "mse": np.array([0.7, 0.4]), "loss": np.array([0.8, 0.5])}
    metrics = History({"mse": np.ones(100), "grad_norm": np.ones(100)}, validation=found)
    figure = plotting.history(metrics, title="a run")
    of_mse, of_norm = figure.axes
    training, validation = of_mse.lines
    np.testing.assert_array_equal(validation.get_xydata(), [[50, 0.7], [100, 0.4]])
    assert (training.get_marker(), training.get_linestyle()) != (validation.get_marker(), validation.get_linestyle())
    assert len(of_norm.lines) == 1  # which has none
    assert [text.get_text() for text in legend(figure)] == ["training", "validation"]
    assert not plotting.history(metrics, names=["grad_norm"]).legends


def test_points_are_means_where_the_steps_do_not_divide_evenly():
    (axes,) = plotting.history({"loss": np.arange(20.0)}, num_points=3).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[6, 2.5], [13, 9], [20, 16]])


def band_of(collection):
    """{x: (low, high)} of a `fill_between`."""
    vertices = collection.get_paths()[0].vertices
    return {x: (vertices[vertices[:, 0] == x, 1].min(), vertices[vertices[:, 0] == x, 1].max()) for x in vertices[:, 0]}


def test_learning_curves_draw_median_and_quartiles_of_each_method():
    rng = np.random.default_rng(0)
    histories = {
        "MAML": {"mse": rng.normal(size=(7, 4)), "is_finite": np.ones((7, 4), bool), "own": np.ones((7, 4))},
        "mine": {"mse": rng.normal(size=(5, 6)), "is_finite": np.ones((5, 6), bool)},
        "one seed": {"mse": rng.normal(size=3)},
    }
    figure = plotting.learning_curves(histories, title="two methods and a run")
    (axes,) = figure.axes  # "own" is not what all have
    assert axes.get_ylabel() == "mse" and figure.get_suptitle() == "two methods and a run"
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["MAML, 7 seeds", "mine, 5 seeds", "one seed"] == [text.get_text() for text in legend(figure)]
    for line, history in zip(axes.lines, histories.values(), strict=True):
        values = np.atleast_2d(history["mse"])
        np.testing.assert_array_equal(line.get_xdata(), 1 + np.arange(values.shape[1]))
        np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
    for band, key in zip(axes.collections, ["MAML", "mine"], strict=True):  # none of one seed
        low, high = np.percentile(histories[key]["mse"], [25, 75], axis=0)
        found = band_of(band)
        assert found.keys() == {1.0 + k for k in range(len(low))}
        for k, around in enumerate(zip(low, high, strict=True)):
            np.testing.assert_allclose(found[1 + k], around)


def legend(figure):
    return figure.legends[0].get_texts()


def test_learning_curves_are_means_of_as_many_steps_as_there_are_points():
    values = np.random.default_rng(0).normal(size=(3, 20))
    (axes,) = plotting.learning_curves({"MAML": {"loss": values}}, num_points=5).axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [4, 8, 12, 16, 20])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(values.reshape(3, 5, 4).mean(-1), axis=0))


@pytest.mark.parametrize(
    ("histories", "names", "said"),
    [
        ({}, None, "histories must have at least one entry"),
        ([np.ones(3)], None, "histories must be a dict, such as"),
        ({"MAML": {}}, None, r"histories\['MAML'\] must have at least one entry"),
        ({"MAML": {"mse": np.ones(3)}}, ["loss"], "'MAML' has mse, got 'loss'"),
        ({"MAML": {"mse": np.ones(3)}}, "mse", r"names must be a sequence of names, such as \['mse'\]"),
        (
            {"MAML": {"mse": np.ones(3)}, "mine": {"loss": np.ones(3)}},
            None,
            "must have a metric in common.*'mine': loss",
        ),
        ({"MAML": {"mse": np.ones((2, 0))}}, None, r"mse of histories\['MAML'\] must be of at least one step"),
        ({"MAML": {"mse": np.ones((2, 3, 4))}}, None, r"must have the shape \[steps\] or \[seeds, steps\]"),
    ],
)
def test_learning_curves_say_what_is_wrong(histories, names, said):
    with pytest.raises(ValueError, match=said):
        plotting.learning_curves(histories, names=names)


def test_a_logarithmic_axis_has_plain_numbers():
    (axes,) = plotting.history({"loss": np.array([0.2, 0.5, 4.0])}).axes
    assert axes.get_yscale() == "log"
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    labels = [text.get_text() for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
    assert labels == ["0.2", "0.5", "1", "2"]


def test_empty_panels_are_in_rows_of_four():
    figure, axes = plotting.figure(5, width=2.0, height=1.5)
    assert len(axes) == len(figure.axes) == 5 and figure.get_size_inches().tolist() == [8.0, 3.0]
    assert all(not panel.spines["top"].get_visible() for panel in axes)
    with pytest.raises(ValueError, match="num_panels must be an integer >= 1, got 0"):
        plotting.figure(0)
    with pytest.raises(ValueError, match="width must be a finite number"):
        plotting.figure(1, width=0)


@pytest.mark.parametrize("metrics", [{"loss": np.ones(0)}, {"loss": np.ones((3, 0))}])
def test_a_history_without_steps_is_said(metrics):
    with pytest.raises(ValueError, match="at least one step"):
        plotting.history(metrics)


def test_trajectories_draws_the_start_the_steps_that_were_played_and_the_goal():
    points = np.random.default_rng(0).normal(size=(2, 3, 7, 4, 2))
    mask = np.arange(6)[None, None, :, None] < np.arange(2, 6)[None, None, None, :]
    mask = np.broadcast_to(mask, (2, 3, 6, 4))
    goals = np.array([[0.0, 10.0], [10.0, 0.0]])
    figure = plotting.trajectories(points, mask, goals, "a run", num_episodes=2)
    for axes, task, goal in zip(figure.axes, points, goals, strict=True):
        expected = [task[k, : 3 + e, e] for k in range(3) for e in range(2)]
        for line, wanted in zip(axes.lines[:-1], expected, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), wanted)
            assert line.get_markevery() == [-1]  # a marker where it ends
        np.testing.assert_array_equal(axes.lines[-1].get_xydata(), [goal])
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
        for low, high in (axes.get_xlim(), axes.get_ylim()):
            assert low < min(path.min() for path in expected) and high > 10  # and the goals of all tasks
        assert axes.get_xlim() == figure.axes[0].get_xlim() and axes.get_ylim() == figure.axes[0].get_ylim()


def test_trajectories_of_many_steps_draws_the_first_and_the_last():
    """PEARL's point robot has 10 episodes of context, and is there after the last."""
    figure = plotting.trajectories(np.zeros((1, 11, 3, 1, 2)), np.ones((1, 11, 2, 1), bool), np.ones((1, 2)), "a run")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["before adaptation", "after 3 steps", "after 7 steps", "after 10 steps", "goal"]


def test_lines_draws_each_curve_from_1_on():
    (axes,) = plotting.lines({"a": np.array([3.0, 4.0]), "b": np.array([5.0])}, "pull", "regret", "a run").axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"a": [[1.0, 3.0], [2.0, 4.0]], "b": [[0.0, 5.0], [1.0, 5.0]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"points": np.zeros((2, 1, 5, 3))},
            r"points must have the shape \[tasks, K \+ 1, T \+ 1, E, 2\], got \[2, 1, 5, 3\]",
        ),
        ({"points": np.zeros((2, 1, 5, 3, 3))}, "two numbers along the last axis"),
        ({"mask": np.ones((2, 1, 5, 3))}, r"mask must have the shape \[2, 1, 4, 3\].*got \[2, 1, 5, 3\]"),
        ({"goals": np.zeros(2)}, r"goals must have the shape \[2, 2\]"),
    ],
)
def test_trajectories_say_what_is_wrong(change, said):
    with pytest.raises(ValueError, match=said):
        plotting.trajectories(**{"points": np.zeros((2, 1, 5, 3, 2)), **change})


def test_points_of_ones_own_are_drawn_without_mask_and_goals():
    points = np.random.default_rng(0).normal(size=(2, 1, 5, 1, 2))
    figure = plotting.trajectories(points)
    for axes, task in zip(figure.axes, points, strict=True):
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xydata(), task[0, :, 0])
    assert [text.get_text() for text in legend(figure)] == ["before adaptation"]


def test_beliefs_are_drawn_where_their_cells_are():
    exact = np.zeros((3, 5, 4))
    exact[0, 4, 1], exact[1:, 2, 3] = 0.5, 1.0
    cells = np.array([[0, 0], [1, 0], [2, 3]])
    found = plotting.beliefs(
        {"exact": exact, "learned": exact / 4}, cells=cells, goal=np.array([2, 3]), names=["a", "b", "c"], title="t"
    )
    assert [axes.get_title() for axes in found.axes] == ["a", "b", "c", "", "", ""]
    assert [axes.get_ylabel() for axes in found.axes[::3]] == ["exact", "learned"]
    for i, axes in enumerate(found.axes):
        (image,), (goal, agent) = axes.images, axes.lines
        np.testing.assert_array_equal(image.get_array(), (exact / (1, 4)[i // 3])[i % 3].T)  # rows are y, from below
        assert image.origin == "lower" and image.get_clim() == (0, exact[i % 3].max())
        np.testing.assert_array_equal(goal.get_xydata(), [[2, 3]])
        np.testing.assert_array_equal(agent.get_xydata(), cells[i % 3 : i % 3 + 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grids": {}}, "grids must"),
        ({"grids": {"exact": np.ones((2, 5))}}, "grids"),
        ({"grids": {"exact": np.ones((2, 5, 5)), "learned": np.ones((3, 5, 5))}}, "shape"),
        ({"cells": np.zeros((3, 2))}, "cells must have the shape"),
        ({"goal": np.zeros(3)}, "goal must have the shape"),
        ({"names": ["a"]}, "names must have 2 entries, one for each step, got 1"),
    ],
)
def test_beliefs_of_other_shapes_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        plotting.beliefs(**{"grids": {"exact": np.ones((2, 5, 5))}, **change})


def test_regret_is_the_mean_of_sums_with_its_interval():
    rng = np.random.default_rng(0)
    regrets = {"RL²": rng.uniform(size=(30, 6)), "random": 2 * rng.uniform(size=(30, 6))}
    figure = plotting.regret(regrets, highlight="RL²", pull="pull of an episode")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "pull of an episode",
        "cumulative regret",
        "30 tasks, 95% intervals",
    )
    for line, band, (name, pulls) in zip(axes.lines, axes.collections, regrets.items(), strict=True):
        sums = np.cumsum(pulls, axis=1)
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), 1 + np.arange(6))
        np.testing.assert_allclose(line.get_ydata(), sums.mean(axis=0))
        ci95 = 1.96 * sums.std(axis=0, ddof=1) / np.sqrt(30)
        found = band_of(band)
        for k in range(6):
            np.testing.assert_allclose(found[1 + k], sums[:, k].mean() + np.array([-1, 1]) * ci95[k])
    assert axes.lines[0].get_linewidth() > axes.lines[1].get_linewidth()


@pytest.mark.parametrize(
    ("regrets", "highlight", "said"),
    [
        ({}, None, "regrets must have at least one entry"),
        ({"a": np.ones(3)}, None, r"regrets\['a'\] must have the shape \[tasks, pulls\], got \[3\]"),
        ({"a": np.ones((1, 3))}, None, r"regrets\['a'\] must be of at least 2 tasks"),
        ({"a": np.ones((2, 0))}, None, "must be of at least 2 tasks, got the shape"),
        ({"a": np.ones((2, 3))}, "b", "highlight must be one of a, or None, got 'b'"),
        ({"a": [["x", "y"]]}, None, r"regrets\['a'\] must be numbers"),
    ],
)
def test_regret_says_what_is_wrong(regrets, highlight, said):
    with pytest.raises(ValueError, match=said):
        plotting.regret(regrets, highlight=highlight)


def test_cost_draws_memory_time_and_error_in_their_units():
    memory = {"exact": [2**20, 2**22, np.nan], "mixed mode": [2**20, 2**20, 2**21]}
    time, error = {"exact": [0.001, 0.01, 0.1]}, {"first order": [0.1, 0.2, 0.5], "exact": [0.0, 0.0, 1e-15]}
    figure = plotting.cost([1, 5, 20], memory=memory, time=time, error=error, highlight="exact", title="here")
    labels = ["memory (MiB)", "time (ms)", "relative error"]
    assert [axes.get_ylabel() for axes in figure.axes] == labels and figure.get_suptitle() == "here"
    expected = [
        {"exact": [1, 4, np.nan], "mixed mode": [1, 1, 2]},
        {"exact": [1, 10, 100]},
        {"first order": [0.1, 0.2, 0.5], "exact": [1e-16, 1e-16, 1e-15]},  # 0 is drawn a decade below the rest
    ]
    for axes, curves in zip(figure.axes, expected, strict=True):
        drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert drawn.keys() == curves.keys() and axes.get_xscale() == axes.get_yscale() == "log"
        for name, values in curves.items():
            np.testing.assert_array_equal(drawn[name].get_xdata(), [1, 5, 20])
            np.testing.assert_allclose(drawn[name].get_ydata(), values)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "20"]
    zero = dict(zip(figure.axes[2].get_yticks(), figure.axes[2].get_yticklabels(), strict=True))[1e-16]
    assert zero.get_text() == "0"
    assert [text.get_text() for text in legend(figure)] == ["exact", "mixed mode", "first order"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of memory, time and error must be given"),
        ({"memory": {}}, "memory must have at least one entry"),
        ({"time": {"exact": [1.0]}}, r"time\['exact'\] must have 2 numbers, one for each of num_steps.*got 1"),
        ({"memory": {"exact": [0.0, 1.0]}}, r"memory\['exact'\] must be positive"),
        ({"error": {"exact": [-1.0, 1.0]}}, r"error\['exact'\] must be positive"),
        ({"memory": {"exact": [1.0, 2.0]}, "highlight": "auto"}, "highlight must be one of exact, or None, got 'auto'"),
        ({"memory": {"exact": [1.0, 2.0]}, "num_steps": [0, 1]}, "num_steps must be positive"),
    ],
)
def test_cost_says_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        plotting.cost(**{"num_steps": [1, 5], **given})


def test_regression_adaptation_draws_truth_shots_and_each_fit():
    x = np.linspace(-1, 1, 7)
    truths = np.stack([x, x**2])
    fits = np.stack([[0 * x, x + 0.1, x], [0 * x, x**2 + 0.1, x**2]])
    shots = [(x[:2, None], x[:2, None]), (x[2:4, None], x[2:4, None] ** 2)]
    figure = plotting.regression_adaptation(x, truths, shots, fits, [0, 1, 10], "a run")
    assert len(figure.axes) == 2
    for axes, truth, task_fits, (shots_x, shots_y) in zip(figure.axes, truths, fits, shots, strict=True):
        drawn = [line.get_xydata() for line in axes.lines]
        expected = [*(np.stack([x, y], axis=1) for y in (truth, *task_fits)), np.hstack([shots_x, shots_y])]
        for got, wanted in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["true function", "before adaptation", "after 1 step", "after 10 steps", "shots"]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("x", "y")}
    with pytest.raises(ValueError, match="steps must be at most 4 numbers, got 5"):
        plotting.regression_adaptation(x, truths, shots, fits, range(5), "a run")


def test_episode_frames_right_and_wrong_predictions():
    labels = np.array([0, 1])
    support = (np.zeros((2, 3, 3)), labels)
    query = (np.arange(36.0).reshape(4, 3, 3), np.array([0, 0, 1, 1]))
    figure = plotting.episode(support, query, np.array([0, 1, 1, 1]), "an episode")
    frames = [axes.spines["top"].get_edgecolor() for axes in figure.axes]
    from matplotlib.colors import to_rgba

    right, wrong, shot = to_rgba(plotting.RIGHT), to_rgba(plotting.WRONG), to_rgba("black")
    assert frames == [shot, right, wrong, shot, right, right]
    assert [axes.get_title() for axes in figure.axes] == ["", "", "as 1", "", "", ""]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), query[0][1])
    assert "orange, dashed: wrong" in figure.get_suptitle()


def _episode_of_one_class():
    images, labels = np.zeros((2, 4, 4)), np.zeros(2, int)
    return plotting.episode((images, labels), (images, labels), labels, "maml")


@pytest.mark.parametrize("make", [lambda: plotting.figure()[0], _episode_of_one_class])
def test_a_notebook_shows_the_picture_itself_without_pyplot(make):
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(make())
    assert shown["image/png"][:4] == b"\x89PNG"
    assert len(pickle.loads(pickle.dumps(make())).axes) == len(make().axes)


def test_images_in_colours_and_of_one_channel_are_drawn():
    labels, images = np.array([0, 1]), np.random.default_rng(0).uniform(size=(2, 3, 3, 3))
    colours = plotting.episode((images, labels), (images, labels), labels)
    np.testing.assert_array_equal(colours.axes[0].images[0].get_array(), images[0])
    grey = plotting.episode((images[..., :1], labels), (images[..., :1], labels), labels)
    np.testing.assert_array_equal(grey.axes[0].images[0].get_array(), images[0, :, :, 0])


@pytest.mark.parametrize(
    ("support", "predictions", "said"),
    [
        (
            (np.zeros((2, 9)), np.arange(2)),
            np.arange(2),
            r"images of support must have the shape \[B, H, W\].*got \[2, 9\]",
        ),
        ((np.zeros((2, 3, 3)), np.arange(3)), np.arange(2), r"labels of support must have the shape \[2\]"),
        (
            (np.zeros((2, 3, 3)), np.arange(2)),
            np.arange(3),
            "predictions must have 2 entries, one for each query, got 3",
        ),
        (np.zeros((2, 3, 3)), np.arange(2), r"support must be \(images, labels\)"),
    ],
)
def test_an_episode_says_what_is_wrong(support, predictions, said):
    with pytest.raises(ValueError, match=said):
        plotting.episode(support, (np.zeros((2, 3, 3)), np.arange(2)), predictions)


def test_fits_of_other_shapes_are_said():
    x = np.linspace(-1, 1, 5)
    with pytest.raises(ValueError, match=r"predictions must have the shape \[1, 2, 5\].*got \[1, 1, 5\]"):
        plotting.regression_adaptation(x, x[None], [(x, x)], np.zeros((1, 1, 5)), [0, 1])
    with pytest.raises(ValueError, match="shots must have 1 entry, one for each task, got 2"):
        plotting.regression_adaptation(x, x[None], [(x, x)] * 2, np.zeros((1, 1, 5)), [0])


def test_names_of_ones_own_differ_in_colour_marker_and_line():
    for taken in ([], ["MAML", "RL²"], ["first order", "random"]):
        found = plotting.styles([*taken, *"abcde"])
        for one, other in itertools.combinations([found[name] for name in "abcde"], 2):
            assert one.color != other.color and one.marker != other.marker and one.line != other.line
        assert not {found[name].color for name in "abcde"} & {found[name].color for name in taken}


def test_a_method_looks_the_same_wherever_it_is_drawn():
    together = plotting.lines({name: np.arange(3.0) for name in ("random", "mine", "RL²")}, "", "", "")
    alone = plotting.lines({"RL²": np.arange(3.0)}, "", "", "", highlight="RL²")
    compared = plotting.report(constant(1.0, 2.0), references={"random": constant(1.0, 2.0)})
    look = {}
    for figure in (together, alone, compared):
        for line in figure.axes[0].lines:
            if not line.get_label().startswith("_"):
                style = (line.get_color(), line.get_marker(), line.get_linestyle())
                assert look.setdefault(line.get_label(), style) == style
    assert {"random", "mine", "RL²", "mean, 95% interval", "median"} <= look.keys()
    assert len({look[name] for name in ("random", "mine", "RL²")}) == 3


NAMES = list(plotting.METHODS)
TOGETHER = {
    "bandit": ["RL²", "Bayes-optimal", "Gittins", "Thompson", "UCB1, tuned", "random"],
    "policies": ["random", "told the task", "from scratch, rate x1", "from scratch, rate x10", "no context", "optimal"],
    "strategies": NAMES[NAMES.index("auto") : NAMES.index("log π · G")],
    "estimators": ["first order", *NAMES[NAMES.index("log π · G") :]],
    "MDPs": ["RL²", "told the MDP", "PSRL", "random"],
    "learners": ["MAML", "PEARL", "RL²", "VariBAD"],
    "beliefs": ["VariBAD", "RL²", "told the goal", "Bayes-optimal", "random"],
    "few-shot": ["MAML", "ProtoNet", "Proto-MAML", "BOIL", "fine-tuning", "SimpleShot"],
}


@pytest.mark.parametrize("group", ["bandit", "policies", "MDPs"])
def test_what_a_report_is_compared_with_looks_otherwise(group):
    for name in {*TOGETHER[group]} - {"RL²"}:
        style = plotting.METHODS[name]
        assert style.color != plotting.OWN.color and style.line not in (plotting.OWN.line, plotting.MEDIAN.line)


@pytest.mark.parametrize("group", TOGETHER)
def test_methods_that_are_drawn_together_differ_in_colour_and_in_more_than_colour(group):
    for one, other in itertools.combinations(TOGETHER[group], 2):
        a, b = plotting.METHODS[one], plotting.METHODS[other]
        assert (a.marker, a.line) != (b.marker, b.line), (one, other)
        assert a.color != b.color or other == f"{one}, baseline", (one, other)


def test_the_picture_of_the_rooms_shows_who_may_import_whom():
    """It says so in words too, in its metadata: after a change of ROOMS, run docs/pictures/draw.py."""
    draw = runpy.run_path(str(PICTURES / "draw.py"))
    rooms = draw["rooms_of_tests"]()
    written = ElementTree.parse(PICTURES / "rooms.svg").iter("{http://purl.org/dc/elements/1.1/}description")
    assert [element.text for element in written] == [draw["in_words"](rooms)]
    (axes,) = draw["rooms"](rooms).axes
    texts = {text.get_text() for text in axes.texts}
    assert {"algorithms", "adapt", "nn", "outer", "rl", "tasks", "training", "plotting"} <= texts
    among = [
        (name, other) for name, of in rooms.items() for other in of or () if {name, other} <= draw["PLACES"].keys()
    ]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == len(among)


def test_the_concept_pictures_have_no_text_and_a_white_background():
    """Text as paths: an <img> may not load fonts, and a reader's machine may have others."""
    for name in ("two_loops.svg", "rooms.svg"):
        content = (PICTURES / name).read_text()
        assert "<text" not in content and "fill: #ffffff" in content and "http://www.w3.org/2000/svg" in content
        assert len(content) < 150_000
