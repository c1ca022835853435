"""Pictures show what they are given: the numbers are read back from the figures."""

import itertools

import numpy as np
import pytest

from jaxmeta import plotting
from jaxmeta.training import Report


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
    "learners": ["MAML", "PEARL", "RL²"],
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
