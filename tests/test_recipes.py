"""Every recipe trains; the quick ones reach their figures here, the slow ones with `-m slow`."""

import dataclasses
import importlib
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta
from jaxmeta import plotting, run_directory, runs
from jaxmeta.__main__ import main
from jaxmeta.algorithms import ELBO
from jaxmeta.recipes import RECIPES, Omniglot
from jaxmeta.recipes.bilevel import BILEVEL
from jaxmeta.recipes.episodes import Episodes
from jaxmeta.recipes.experiment import from_dict
from jaxmeta.recipes.images import Glyphs
from jaxmeta.recipes.maml_rl import MAML_RL, SCRATCH
from jaxmeta.recipes.meta_gradient_rl import META_GRADIENT_RL
from jaxmeta.recipes.pearl import PEARL
from jaxmeta.recipes.rl import OnPolicy
from jaxmeta.recipes.rl2 import RL2_RECIPES, BanditRL2
from jaxmeta.recipes.streams import STREAMS
from jaxmeta.recipes.varibad import VARIBAD
from jaxmeta.rl import families
from jaxmeta.rl.on_policy import PPO, TRPO, Advantages
from jaxmeta.tasks import few_shot, polynomial_optimum

CLOSED_FORM = ["protonet-omniglot", "ridge-omniglot", "protonet-glyphs"]
SINUSOIDS = [name for name in RECIPES if name.endswith("sinusoid")]
SMALL_RL = (
    "--num-outer-steps",
    "2",
    "--num-tasks",
    "2",
    "--num-eval-tasks",
    "4",
    "--num-episodes",
    "2",
    "--hidden",
    "4",
)

SMALL_RL2 = (
    "--num-outer-steps",
    "2",
    "--num-tasks",
    "2",
    "--ppo.num-minibatches",
    "1",
    "--trpo.num-critic-minibatches",
    "1",
    "--num-units",
    "4",
    "--num-eval-tasks",
    "4",
)
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cpu"
BAYES_OPTIMAL = {2: 6.0218, 5: 6.66, 10: 6.714, 50: 6.714}  # no more than 10 arms are pulled in 10 pulls
NEEDS = {"pearl-cheetah-vel": "brax", "rl2-xland": "xminigrid"}


def result(name, directory, *arguments):
    assert main(["train", name, "--out", str(directory), *arguments]) == 0
    return json.loads((directory / "result.json").read_text())


def test_a_picture_of_an_episode_of_fewer_classes_predicts_none_of_the_others():
    tasks = few_shot(
        np.arange(288, dtype=np.uint16).astype(np.uint8).reshape(6, 3, 4, 4),
        num_ways=(2, 5),
        num_shots=1,
        num_queries=2,
    )
    fond_of_the_last = lambda params, x: jnp.tile(jnp.arange(5.0), (len(x), 1))
    learner = SimpleNamespace(adapt=lambda key, meta_params, task: ())
    config = Episodes(num_outer_steps=1, num_tasks=1, num_shots=1, num_queries=2)
    experiment = config.experiment(learner, fond_of_the_last, tasks, tasks, "", "")
    key = jax.random.key(0)
    titles = {axes.get_title() for axes in experiment.pictures(key, None, "")["episode.png"].axes}
    assert tasks.sample(key, tasks.data).query.num_ways == 3 and titles == {"", "as 2"}


# MAML's trains in test_main.py, and the others are it with other settings
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "cavia-sinusoid" else pytest.mark.slow) for name in SINUSOIDS],
)
def test_recipes_of_sinusoids_train(name, tmp_path):
    found = result(name, tmp_path / name, "--num-outer-steps", "3", "--num-tasks", "2", "--num-eval-tasks", "4")
    config = RECIPES[name].config()
    assert len(found["metrics"]["mse"]["mean"]) == config.num_eval_steps + 1
    assert np.all(np.isfinite(found["metrics"]["mse"]["mean"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--inner-optimizer", "lslr", "--num-annealing-steps", "2"),
        pytest.param(("--meta-gradient", "implicit", "--proximal-strength", "2"), marks=pytest.mark.slow),
        pytest.param(("--meta-gradient", "mixed_mode", "--microbatch", "1"), marks=pytest.mark.slow),
    ],
    ids=["MAML++", "iMAML", "mixed mode"],
)
def test_the_options_of_an_inner_loop_train(options, tmp_path, capsys):
    short = ("--num-outer-steps", "3", "--num-tasks", "2", "--num-eval-tasks", "4")
    found = result("maml-sinusoid", tmp_path / "run", *options, *short)
    assert np.all(np.isfinite(found["metrics"]["mse"]["mean"]))
    assert ("auto: exact() for 2 inner steps" in capsys.readouterr().out) == ("--meta-gradient" not in options)


@pytest.mark.slow
def test_damping_goes_to_the_implicit_meta_gradient_and_to_no_other():
    plain, damped = (replace(RECIPES["imaml-omniglot"].config(), damping=damping) for damping in (0.0, 3.0))
    assert "damping" not in plain.protocol()
    assert "drawn back with strength 2, damping 3" in damped.protocol()
    linear = replace(
        RECIPES["maml-linear"].config(), num_outer_steps=1, meta_gradient="implicit", proximal_strength=1.0
    )
    moved = {}
    for damping in (0.0, 3.0):
        experiment = replace(linear, damping=damping).build()
        state, _ = jaxmeta.fit(
            jax.random.key(0),
            experiment.learner,
            experiment.train_tasks,
            num_outer_steps=1,
            num_tasks=2,
            progress=False,
        )
        moved[damping] = optax.tree.norm(state.opt_state[0].mu)
    assert 0 < moved[3.0] < moved[0.0]
    with pytest.raises(ValueError, match="damping must be 0 with meta_gradient='auto', got 3"):
        replace(RECIPES["maml-linear"].config(), damping=3.0)


@pytest.mark.slow  # of recipes of episodes, that of a folder trains in the check
@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("omniglot")])
def test_omniglot_recipes_train(name, tmp_path, omniglot_dir, omniglot_cache, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(omniglot_cache))
    statistics, said = ("support", "of the support set") if name in CLOSED_FORM else ("query", "transductive")
    found = result(
        name,
        tmp_path / name,
        "--data-dir",
        str(omniglot_dir),
        "--statistics",
        statistics,
        "--num-filters",
        "4",
        "--num-outer-steps",
        "2",
        "--num-tasks",
        "2",
        "--num-eval-tasks",
        "4",
    )
    assert set(found["metrics"]) == {"accuracy", "loss"}
    num_eval_steps = 1 if name in CLOSED_FORM else RECIPES[name].config().num_eval_steps
    assert len(found["metrics"]["accuracy"]["mean"]) == num_eval_steps + 1
    assert said in found["batch_norm"]
    assert (tmp_path / name / "episode.png").exists()


@pytest.mark.slow  # as those of Omniglot, above
@pytest.mark.parametrize("name", ["maml-glyphs", "protonet-glyphs"])
def test_recipes_of_glyphs_train_and_are_judged_on_both_kinds_of_scripts_beside_pixels(
    name, tmp_path, monkeypatch, capsys
):
    """Of every tenth character."""
    every_tenth = lambda faces: glyphs_of_all(faces)[::10]
    glyphs = importlib.import_module("jaxmeta.tasks.glyphs")
    glyphs_of_all = glyphs._code_points
    monkeypatch.setattr(glyphs, "_code_points", every_tenth)
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    short = ("--num-filters", "4", "--num-outer-steps", "2", "--num-tasks", "2", "--num-eval-tasks", "40")
    found = result(name, tmp_path / name, *short, "--num-ways", "5", "--statistics", "support")
    assert "of the support set" in found["batch_norm"]
    (other,) = found["other_tests"].values()
    for test in (found, other):
        (pixels,) = test["references"].values()
        accuracy, ahead = (test["metrics"]["accuracy"]["mean"][-1], pixels["ahead"]["mean"])
        assert 0.25 < pixels["accuracy"]["mean"][-1] < 0.6  # and chance is 0.2
        assert accuracy - pixels["accuracy"]["mean"][-1] == pytest.approx(ahead, abs=1e-6)
    assert other["metrics"] != found["metrics"] and other["num_tasks"] == 40
    assert (tmp_path / name / "episode.png").exists()
    assert "on held-out scripts: 40 test tasks" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", MAML_RL)
def test_recipes_of_gradient_meta_rl_train_beside_what_they_are_compared_with(
    name, tmp_path, schedule_ends_with_the_run, monkeypatch
):
    drawn, draw = [], plotting.trajectories
    monkeypatch.setattr(plotting, "trajectories", lambda *given: drawn.append(given) or draw(*given))
    monkeypatch.setattr("jaxmeta.recipes.maml_rl.SCRATCH", SCRATCH[1:])  # a program each
    found = result(name, tmp_path / name, *SMALL_RL, "--schedule", "cosine")
    config = RECIPES[name].config()
    assert len(found["metrics"]["return"]["mean"]) == config.num_eval_steps + 1
    assert np.all(np.isfinite(found["metrics"]["return"]["mean"]))
    told = {"told the task"} if config.oracle() else set()
    scratch = {f"from scratch, rate x{scale}" for scale in SCRATCH[1:]}
    without = {"without the term"} if config.surrogate.exploration_weight else set()
    assert set(found["references"]) == {"random"} | scratch | told | without
    best = found["references"].get("told the task", {"return": {"mean": [np.inf]}})["return"]["mean"][0]
    assert best > found["references"]["random"]["return"]["mean"][0]
    assert (tmp_path / name / "adaptation_curve.png").exists()
    for points, mask, goals, title in drawn:
        assert title == f"{name}, four test tasks" and points.shape[2] == mask.shape[2] + 1
        assert len(np.unique(goals, axis=0)) == 4 or "corners" not in name
        assert np.all(np.abs(points[:, :, 0]) <= 0.2)  # where episodes start: a corner of the grid, or about the origin
    schedule_ends_with_the_run(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "rl2-gridworld" else pytest.mark.slow)
        for name in RL2_RECIPES
        if name not in ("rl2-maze", "rl2-xland")
    ],
)
def test_recipes_of_rl2_train_beside_the_oracles(name, tmp_path, monkeypatch, capsys, schedule_ends_with_the_run):
    monkeypatch.setattr("jaxmeta.recipes.trials.PICTURE_TASKS", 4)
    config, of_all = RECIPES[name].config(), name == "rl2-gridworld"  # which has 21 tasks
    found = result(name, tmp_path / name, *SMALL_RL2[:-1], "100" if of_all else "4")
    assert f"evaluating on {21 if of_all else 4} test tasks" in capsys.readouterr().out
    assert len(found["metrics"]["return"]["mean"]) == config.num_episodes
    assert np.isclose(np.sum(found["metrics"]["return"]["mean"]), found["metrics"]["total"]["mean"][0])
    assert set(found["references"]) == set(config.oracles()) > {"random"}
    for reference in found["references"].values():
        assert len(reference["return"]["mean"]) == config.num_episodes
    assert (tmp_path / name / "longer.png").exists()
    assert (tmp_path / name / "regret.png").exists() == (name == "rl2-bandit")
    schedule_ends_with_the_run(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIBAD)
def test_recipes_of_varibad_train_beside_the_oracles(name, tmp_path, monkeypatch, schedule_ends_with_the_run):
    monkeypatch.setattr("jaxmeta.recipes.trials.PICTURE_TASKS", 4)
    small = ("--num-outer-steps", "2", "--num-tasks", "4", "--num-eval-tasks", "4", "--ppo.num-minibatches", "1")
    found = result(name, tmp_path / name, *small, "--num-units", "4", "--num-encoder-units", "4")
    config = RECIPES[name].config()
    assert len(found["metrics"]["return"]["mean"]) == config.num_episodes
    assert set(found["references"]) == set(config.oracles()) > {"random"}
    assert (tmp_path / name / "longer.png").exists()
    schedule_ends_with_the_run(tmp_path / name)
    if name == "varibad-gridworld":
        divergence = found["metrics"]["kl_at_step_0"]["mean"]
        assert len(divergence) == 4 and abs(divergence[0] - np.log(25 / 21)) < 0.05  # as yet all cells are as likely
        assert (tmp_path / name / "beliefs.png").exists() and (tmp_path / name / "kl.png").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "nav" in name else []) for name in VARIBAD]
)
def test_a_recipe_of_varibad_builds_and_its_update_keeps_its_types(name):
    config = replace(RECIPES[name].config(), num_units=4, num_encoder_units=4, num_tasks=2, ppo=PPO(), elbo=ELBO())
    experiment = config.build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    tasks = jax.eval_shape(sample, jax.random.split(jax.random.key(1)), experiment.train_tasks.data)
    after, metrics = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(after) == shapes(state) and {"elbo", "kl", "return"} <= metrics.keys()
    assert f"beliefs over {config.latent_size} numbers" in experiment.protocol


@pytest.mark.slow
def test_the_recipe_of_a_maze_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmeta.recipes.trials.PICTURE_TASKS", 4)
    found = result("rl2-maze", tmp_path / "run", *SMALL_RL2)
    assert np.all(np.isfinite(found["metrics"]["total"]["mean"]))


def test_what_xland_is_compared_with_remembers_nothing(monkeypatch):
    """In another family, for that one has to be installed."""
    asked = []

    def fit(key, learner, tasks, **how):
        asked.append(how)
        return learner.init(key), None

    monkeypatch.setattr("jaxmeta.recipes.rl2.XLandRL2.family", lambda self: families.gridworld())
    monkeypatch.setattr("jaxmeta.recipes.rl.fit", fit)
    config = replace(RECIPES["rl2-xland"].config(), num_units=4, num_critic_units=4, num_layer_units=4)
    learner, meta_params = config.references(jax.random.key(0))["no memory"]
    carry = lambda learner, meta_params: jax.tree.leaves(learner.agent(meta_params).carry)
    assert not any(leaf.size for leaf in carry(learner, meta_params))
    assert any(leaf.size for leaf in carry(config.learner(), config.learner().init(jax.random.key(0)).meta_params))
    few = replace(config, num_reference_steps=3)
    assert asked == [{"num_outer_steps": config.num_outer_steps, "num_tasks": config.num_tasks}]
    few.references(jax.random.key(0))
    assert asked[1]["num_outer_steps"] == 3
    assert set(replace(config, num_reference_steps=0).references(jax.random.key(0))) == {"random"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # xminigrid's
def test_the_recipe_of_xland_trains_beside_the_same_network_without_a_memory(tmp_path, monkeypatch):
    pytest.importorskip("xminigrid", reason="needs the extra xland")
    monkeypatch.setattr("jaxmeta.recipes.trials.PICTURE_TASKS", 4)
    found = result("rl2-xland", tmp_path / "run", *SMALL_RL2, "--num-episodes", "2")
    assert set(found["references"]) == {"random", "no memory"}
    for of in (found["metrics"], *found["references"].values()):
        assert len(of["return"]["mean"]) == 2 and np.all(np.isfinite(of["return"]["mean"]))


@pytest.mark.slow  # each of them is built in the check, below
@pytest.mark.parametrize(
    "options",
    [
        ("--core", "min_gru"),
        ("--core", "causal_transformer"),
        ("--num-layer-units", "4", "--final-entropy-weight", "0"),
        ("--outer", "trpo"),
    ],
)
def test_the_options_of_rl2_train(options, tmp_path, monkeypatch, schedule_ends_with_the_run):
    monkeypatch.setattr("jaxmeta.recipes.rl2.BanditRL2.pictures", lambda *_: {})  # which are those of the test above
    monkeypatch.setattr("jaxmeta.recipes.rl2.BanditRL2.references", lambda *_: {})
    monkeypatch.setattr(jaxmeta.nn, "causal_transformer", partial(jaxmeta.nn.causal_transformer, num_layers=1))
    found = result("rl2-bandit", tmp_path / "run", *SMALL_RL2, "--num-arms", "2", "--num-pulls", "3", *options)
    assert 0 <= found["metrics"]["total"]["mean"][0] <= 3
    schedule_ends_with_the_run(tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        *({"core": core} for core in ("lstm", "min_gru", "causal_transformer", "feed_forward")),
        {"num_layer_units": 4, "final_entropy_weight": 0.0},
        {"outer": "trpo"},
    ],
    ids=str,
)
def test_a_recipe_of_rl2_builds_with_its_options_and_its_update_keeps_its_types(options):
    """By shapes: the training of the slow ones above takes long to compile."""
    small = {"num_arms": 2, "num_pulls": 3, "num_units": 4, "num_tasks": 2}
    experiment = replace(RECIPES["rl2-bandit"].config(), ppo=PPO(), trpo=TRPO(), **small, **options).build()
    state = jax.eval_shape(experiment.learner.init, jax.random.key(0))
    sample = jax.vmap(experiment.train_tasks.sample, (0, None))
    tasks = jax.eval_shape(sample, jax.random.split(jax.random.key(1)), experiment.train_tasks.data)
    after, metrics = jax.eval_shape(experiment.learner.update, jax.random.key(2), state, tasks)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert "total" in metrics
    names = {name for name, _ in jax.tree_util.tree_flatten_with_path(state.meta_params)[0] for name in map(str, name)}
    assert any("block0" in name for name in names) == ("causal_transformer" in options.values())


def test_layers_around_the_network_and_where_the_entropys_weight_ends():
    plain = RECIPES["rl2-bandit"].config()
    config = replace(plain, num_outer_steps=10, num_layer_units=5, entropy_weight=0.2, final_entropy_weight=0.1)
    assert (plain.actor().num_outputs, config.actor().num_outputs) == (64, 5)
    assert plain.of_entropy() == 0.01
    np.testing.assert_allclose([config.of_entropy()(step) for step in (0, 5, 10)], [0.2, 0.15, 0.1], rtol=1e-6)
    assert "layers of 5" in config.protocol() and "entropy 0.2 to 0.1" in config.protocol()


@pytest.mark.slow
@pytest.mark.parametrize(("num_arms", "figure"), [(5, 6.55), (2, 5.97), (10, 6.55), (50, 6.6)])
def test_rl2_comes_close_to_the_best_possible(num_arms, figure, tmp_path):
    """On the same 1,000 tasks the Bayes-optimal policy has what it has; their own luck is not the learner's."""
    found = result("rl2-bandit", tmp_path / "run", "--num-arms", str(num_arms))
    luck = found["references"]["Bayes-optimal"]["total"]["mean"][0] - BAYES_OPTIMAL[num_arms]
    assert found["metrics"]["total"]["mean"][0] - luck >= figure


@pytest.mark.parametrize("name", RECIPES)
def test_fields_are_documented_and_frozen(name):
    config = RECIPES[name].config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_outer_steps = 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_protocol_of_ones_has_no_plurals(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs the package {NEEDS[name]}")
    config = RECIPES[name].config()
    counts = {field.name for field in dataclasses.fields(config) if type(getattr(config, field.name)) is int}
    kept = {"num_eval_tasks", "split_seed", "size", "num_exploration_episodes", "capacity", "num_hidden"}  # not 1
    ones = replace(config, **dict.fromkeys(counts - kept, 1))
    if isinstance(config, OnPolicy):
        ones = replace(ones, ppo=PPO())  # one epoch of one minibatch
    reads = hasattr(config, "data_dir") or isinstance(config, Glyphs)  # or renders, for seconds
    protocol = ones.protocol() if reads else ones.build().protocol
    assert re.search(r"\b1 (outer |inner |training |gradient )?(step|shot)", protocol)
    assert not re.findall(r"(?<![+] )\b1 (?:\w+ )?(?:\w+s|queries)\b(?= |,|;|\.|\)|$)", protocol)


@pytest.mark.parametrize("name", ["maml-bandit", "rl2-bandit"])
def test_the_protocol_of_a_bandit_names_its_arms_and_pulls(name):
    protocol = replace(RECIPES[name].config(), num_arms=7, num_pulls=100).protocol()
    assert "bandits of 7 arms, 100 pulls" in protocol


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_comes_back_from_what_is_written_of_it(name):
    """Through JSON, with the bundles of options in it."""
    config = RECIPES[name].config()
    written = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(type(config), written) == config
    with pytest.raises(TypeError, match="num_stepz"):
        from_dict(type(config), {**written, "num_stepz": 3})


@pytest.mark.parametrize("name", [*MAML_RL, *RL2_RECIPES, "maml-glyphs", "protonet-glyphs"])
def test_the_committed_results_are_of_the_recipes(name):
    *_, config = run_directory.read_config(RESULTS / name)
    assert config == RECIPES[name].config()


@pytest.mark.parametrize("name", RECIPES)
def test_fields_of_an_inner_loop_are_where_there_is_one(name):
    fields = {field.name for field in dataclasses.fields(RECIPES[name].config())}
    of_a_loop = {"meta_gradient", "inner_optimizer", "inner_learning_rate", "num_inner_steps", "num_eval_steps"}
    without = {"meta_gradient"} if name in MAML_RL else {"inner_optimizer"} if name in BILEVEL else set()
    without |= {"meta_gradient", "inner_optimizer", "num_eval_steps"} if name in STREAMS | META_GRADIENT_RL else set()
    expected = set() if name in CLOSED_FORM or name in RL2_RECIPES | VARIBAD | PEARL else of_a_loop
    assert fields & of_a_loop == expected - without


def test_omniglot_protocol_follows_the_device(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    paper = RECIPES["maml-omniglot"].config()
    assert isinstance(paper, Omniglot)
    assert (paper.num_outer_steps, paper.num_tasks, paper.num_filters) == (60_000, 32, 64)
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert RECIPES["maml-omniglot"].config().num_outer_steps < 60_000


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].by])
def test_settings_that_follow_others_are_the_recipes_own_at_its_defaults(name):
    config = RECIPES[name].config()
    assert RECIPES[name].settings_for(config) == config


@pytest.mark.parametrize("name", [name for name in RECIPES if "num_ways" in RECIPES[name].by])
def test_ways_and_shots_leave_what_a_recipe_is_of(name):
    config = RECIPES[name].config()
    large = RECIPES[name].settings_for(replace(config, num_ways=20, num_shots=5))
    assert (large.num_ways, large.num_shots, type(large)) == (20, 5, type(config))
    assert large.inner_optimizer == config.inner_optimizer and large.meta_gradient == config.meta_gradient
    assert large.num_eval_steps == large.num_inner_steps or large.inner_optimizer != "lslr"  # a rate for each step


@pytest.mark.parametrize("num_shots", [1, 5])
@pytest.mark.parametrize(
    ("num_ways", "rate_of_a_sum", "num_tasks", "num_inner_steps", "num_eval_steps"),
    [(5, 0.4, 32, 1, 3), (20, 0.1, 16, 5, 5)],
)
def test_on_an_accelerator_omniglots_settings_are_the_papers(
    num_ways, rate_of_a_sum, num_tasks, num_inner_steps, num_eval_steps, num_shots, monkeypatch
):
    """Finn et al. 2017, appendix A.1, whose inner loss is a sum over the classes."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    config = RECIPES["maml-omniglot"].config(num_ways=num_ways, num_shots=num_shots)
    assert np.isclose(config.inner_learning_rate, rate_of_a_sum * num_ways)
    assert (config.num_tasks, config.num_inner_steps, config.num_eval_steps) == (
        num_tasks,
        num_inner_steps,
        num_eval_steps,
    )
    assert (config.num_queries, config.num_outer_steps, config.learning_rate, config.schedule, config.optimizer) == (
        num_shots,
        60_000,
        1e-3,
        "constant",
        "adam",
    )


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """What `jaxmeta train NAME --out run` prints before it trains, its configuration, and its status."""
    tasks = jaxmeta.tasks.linear()
    build = lambda config: SimpleNamespace(protocol=config.protocol(), train_tasks=tasks)  # without the images
    monkeypatch.setattr("jaxmeta.recipes.images.GradientOmniglot.build", build)
    monkeypatch.setattr(runs, "_train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    directory = tmp_path / "run"

    def train(*arguments, name="maml-omniglot"):
        status = main(["train", name, "--out", str(directory), *arguments])
        printed = capsys.readouterr()
        return printed.out + printed.err, run_directory.read_config(directory)[2], status

    return train


def test_twenty_ways_take_their_settings_and_print_them(said):
    printed, config, _ = said("--num-ways", "20")
    assert config == RECIPES["maml-omniglot"].config(num_ways=20)
    assert (config.num_inner_steps, config.num_eval_steps, config.num_outer_steps) == (1, 5, 8000)
    assert f"{config.num_outer_steps:,} outer steps of {config.num_tasks} tasks" in printed
    assert "through 1 inner step of sgd 0.4, 5 at test" in printed
    assert "not as the recipe: num_ways 20 (the recipe has 5)\n" in printed and "to reach" not in printed
    printed, same, status = said("--num-ways", "20", "--resume")
    assert same == config and status == 130  # stopped where it would train
    printed, _, status = said("--resume")
    assert (
        status == 2 and "holds a run with other settings: " in printed and "num_eval_steps 3 (the run has 5)" in printed
    )


def test_five_shots_take_their_settings_and_print_them(said):
    printed, config, _ = said("--num-shots", "5")
    assert config == replace(RECIPES["maml-omniglot"].config(), num_shots=5)
    assert "not as the recipe: num_shots 5 (the recipe has 1)\n" in printed
    assert "through 1 inner step of sgd 0.4, 3 at test" in printed


def test_what_is_given_is_taken_whatever_follows_from_the_ways(said):
    """Even where it is what five ways would have had."""
    given = ("--num-eval-steps", "3", "--num-tasks", "2", "--seed", "3")
    printed, config, _ = said(*given, "--num-ways", "20", "--num-shots", "5")
    at_home = RECIPES["maml-omniglot"].config(num_ways=20, num_shots=5)
    assert config == replace(at_home, num_eval_steps=3, num_tasks=2)
    for differs in (
        "num_tasks 2 (the recipe has 8)",
        "num_eval_steps 3 (the recipe has 5)",
        "num_ways 20 (the recipe has 5)",
    ):
        assert differs in printed
    assert ", seed 3," in printed


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ({"num_arms": 50}, ("bandits of 50 arms", "1,200 outer steps", "between layers of 64", "λ 0.3")),
        (
            {"num_arms": 10, "num_pulls": 100},
            ("bandits of 10 arms, 100 pulls", "3,000 outer steps", "between layers of 64", "entropy 0.05 to 0"),
        ),
    ],
    ids=["many arms", "long trials"],
)
def test_bandits_take_settings_that_fit_their_size_and_print_them(said, size, settings):
    few, fitting = RECIPES["rl2-bandit"].config(), RECIPES["rl2-bandit"].config(**size)
    options = [str(part) for name, number in size.items() for part in (f"--{name.replace('_', '-')}", number)]
    printed, config, _ = said(*options, name="rl2-bandit")
    assert config == fitting
    for setting in settings:
        assert setting in printed and setting not in few.protocol()
    assert f"not as the recipe: num_arms {size['num_arms']} (the recipe has 5)" in printed and "to reach" not in printed


def test_what_is_given_is_taken_whatever_follows_from_the_arms(said):
    printed, config, _ = said("--num-arms", "50", "--advantages.gae-lambda", "0.95", name="rl2-bandit")
    assert config == replace(RECIPES["rl2-bandit"].config(num_arms=50), advantages=Advantages(gae_lambda=0.95))
    assert "gae_lambda 0.95 (the recipe has 0.3)" in printed


BANDITS = [folder.name for folder in sorted(RESULTS.glob("rl2-bandit*"))]


@pytest.mark.parametrize("folder", BANDITS)
def test_bandits_of_each_size_have_the_settings_of_the_committed_results(folder):
    content = json.loads((RESULTS / folder / "config.json").read_text())
    assert (content.pop("recipe"), content.pop("seed")) == ("rl2-bandit", 0)
    config = from_dict(BanditRL2, content)
    assert RECIPES["rl2-bandit"].config(num_arms=config.num_arms, num_pulls=config.num_pulls) == config


@pytest.mark.parametrize(
    ("name", "degree", "noise"),
    [("maml-linear", 1, 0.3), pytest.param("maml-quadratic", 2, 0.0, marks=pytest.mark.slow)],
)
def test_polynomials_reach_the_optimum_in_closed_form(name, degree, noise, tmp_path):
    found = result(name, tmp_path / name)["metrics"]["mse"]
    assert len(found["mean"]) == RECIPES[name].config().num_eval_steps + 1 and np.all(np.isfinite(found["mean"]))
    _, optimum = polynomial_optimum(degree, 10, noise)
    assert found["mean"][1] <= 1.03 * optimum
    assert found["mean"][1] >= optimum - 4 / 1.96 * found["ci95"][1]  # nothing beats it by more than 4 sigma


@pytest.mark.slow
def test_sinusoid_reaches_the_paper(tmp_path):
    mean = result("maml-sinusoid", tmp_path / "run")["metrics"]["mse"]["mean"]
    assert mean[1] <= 0.75 and mean[10] <= 0.45


@pytest.mark.slow
def test_cavia_reaches_the_paper(tmp_path):
    mean = result("cavia-sinusoid", tmp_path / "run")["metrics"]["mse"]["mean"]
    assert mean[1] <= 0.23


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "options"),
    [
        ("maml-omniglot", 0.95, ()),
        ("maml-omniglot", 0.92, ("--num-ways", "20")),
        ("maml-omniglot", 0.98, ("--num-shots", "5")),
        ("protonet-omniglot", 0.96, ()),
    ],
)
def test_omniglot_reaches_its_figure(name, figure, options, tmp_path, omniglot_dir):
    found = result(name, tmp_path / "run", "--data-dir", str(omniglot_dir), *options)
    assert found["num_tasks"] == 600
    assert found["metrics"]["accuracy"]["mean"][-1] >= figure


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "metric", "at_least"),
    [
        ("maml-navigation", "return", {1: -13, 3: -5}),
        ("promp-navigation", "return", {1: -12.5, 3: -5}),
        ("promp-corners", "reached", {3: 0.8}),
    ],
)
def test_gradient_meta_rl_reaches_its_figure(name, metric, at_least, seed, tmp_path):
    mean = result(name, tmp_path / "run", "--seed", str(seed))["metrics"][metric]["mean"]
    assert all(mean[step] >= figure for step, figure in at_least.items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["maml-bandit", "maml-cartpole", "maml-gridworld"])
def test_meta_trained_policies_are_ahead_of_training_from_scratch(name, seed, tmp_path):
    found = result(name, tmp_path / "run", "--seed", str(seed))
    if name == "maml-gridworld":
        reached = found["metrics"]["reached"]["mean"]
        assert reached[3] > reached[1] > reached[0]
    else:
        # A bandit's best arm is plain after 200 pulls: a rate so high that one step decides for it cannot be beaten.
        rates = SCRATCH[:1] if name == "maml-bandit" else SCRATCH
        scratch = [found["references"][f"from scratch, rate x{scale}"]["ahead"] for scale in rates]
        assert all(ahead["mean"] > ahead["ci95"] for ahead in scratch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_e_maml_is_ahead_of_the_same_without_its_term_and_of_training_from_scratch(seed, tmp_path):
    """What it reaches from samples is what the sum over all batches of pulls says (benchmarks/exploration.py)."""
    found = result("e-maml-bandit", tmp_path / "run", "--seed", str(seed))
    rows = json.loads((RESULTS / "exploration.json").read_text())["rows"]
    exact = {row["estimator"]: row["return"][-1] for row in rows if row["case"] == "pulls-4"}
    after = {name: reference["return"] for name, reference in found["references"].items()}
    after |= {"E-MAML": found["metrics"]["return"], "log π · G": after["without the term"]}
    for name in exact.keys() & after.keys():
        assert abs(after[name]["mean"][1] - exact[name]) < 0.03, name
    for name in ("without the term", *(f"from scratch, rate x{scale}" for scale in SCRATCH)):
        ahead = found["references"][name]["ahead"]
        assert ahead["mean"] > ahead["ci95"]
