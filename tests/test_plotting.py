"""Pictures show what they are given: the numbers are read back from the figures."""

import numpy as np

from jaxmeta import plotting


def test_learning_curve_draws_the_values():
    steps, values = np.arange(10, 60, 10), np.array([5.0, 4.0, 3.5, 3.0, 2.9])
    (axes,) = plotting.learning_curve(steps, values, "mse", "a run").axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([steps, values], axis=1))
    assert axes.get_title() == "a run" and axes.get_yscale() == "linear"


def test_learning_curve_over_decades_is_logarithmic():
    (axes,) = plotting.learning_curve(np.arange(3), np.array([100.0, 10.0, 1.0]), "mse", "a run").axes
    assert axes.get_yscale() == "log"


def test_adaptation_curve_draws_mean_interval_and_median():
    curve = {"mse": {"mean": [3.0, 1.0, 0.5], "median": [2.0, 0.7, 0.4], "ci95": [0.3, 0.2, 0.1]}}
    (axes,) = plotting.adaptation_curve(curve, "mse", "a run").axes
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    assert curve["mse"]["mean"] in drawn and curve["mse"]["median"] in drawn
    low, high = axes.containers[0].lines[1]  # the caps
    np.testing.assert_allclose(low.get_ydata(), [2.7, 0.8, 0.4])
    np.testing.assert_allclose(high.get_ydata(), [3.3, 1.2, 0.6])


def test_adaptation_curve_draws_what_the_result_is_compared_with():
    row = lambda *mean: {"return": {"mean": [*mean], "median": [*mean], "ci95": [0.0 for _ in mean]}}
    references = {"random": row(0.5), "from scratch": row(1.0, 1.5)}
    (axes,) = plotting.adaptation_curve(row(1.0, 2.0), "return", "a run", "episode", references).axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(drawn["random"], [0.5, 0.5])  # a line across
    np.testing.assert_array_equal(drawn["from scratch"], [1.0, 1.5])
    assert axes.get_xlabel() == "episode"


def test_trajectories_draws_the_steps_that_were_played_and_the_goal():
    points = np.random.default_rng(0).normal(size=(2, 3, 6, 4, 2))
    mask = np.arange(6)[None, None, :, None] < np.arange(2, 6)[None, None, None, :]
    mask = np.broadcast_to(mask, points.shape[:-1])
    goals = np.array([[0.0, 1.0], [1.0, 0.0]])
    figure = plotting.trajectories(points, mask, goals, "a run", num_episodes=2)
    for axes, task, goal in zip(figure.axes, points, goals, strict=True):
        paths = [line.get_xydata() for line in axes.lines[:-1:2]]
        expected = [task[k, : 2 + e, e] for k in range(3) for e in range(2)]
        for got, wanted in zip(paths, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        ends = [line.get_xydata()[0] for line in axes.lines[1:-1:2]]
        np.testing.assert_array_equal(ends, [path[-1] for path in expected])
        np.testing.assert_array_equal(axes.lines[-1].get_xydata(), [goal])


def test_lines_draws_each_curve_from_1_on():
    (axes,) = plotting.lines({"a": np.array([3.0, 4.0]), "b": np.array([5.0])}, "pull", "regret", "a run").axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"a": [[1.0, 3.0], [2.0, 4.0]], "b": [[1.0, 5.0]]}


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
