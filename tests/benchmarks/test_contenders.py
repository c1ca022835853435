"""All contenders compute one meta-gradient, and one that does not is found and not timed."""

import time

import jax
import numpy as np
import pytest
from reference import mean_meta_gradient, sgd

from benchmarks import throughput
from benchmarks.shared.cases import FAMILIES, Case, cast, episodes, regression, sequences
from benchmarks.shared.contenders import (
    JAXMETA,
    JAXMETA_LOOP,
    PLAIN,
    Contender,
    MetaStep,
    Unavailable,
    build_jaxmeta,
    plain_gradient,
    relative_error,
)
from benchmarks.shared.measure import Program
from jaxmeta import nn

SMALL = {
    "mlp": Case(nn.MLP((8,)), nn.mean_squared_error, regression(3, 5, 4), 2, 0.05),
    "conv4": Case(nn.Conv4(3, num_filters=4), nn.cross_entropy, episodes(2, 3, 1, 2, (12, 12, 1)), 1, 0.4),
    "mini-imagenet": Case(
        nn.Conv4(3, num_filters=4, strided=False), nn.cross_entropy, episodes(2, 3, 1, 2, (34, 34, 3)), 1, 0.1
    ),
    "transformer": Case(
        nn.Transformer(num_outputs=7, max_length=6, num_tokens=7, num_layers=2, width=8, num_heads=2),
        nn.cross_entropy,
        sequences(2, 2, 3, 6, 7),
        1,
        0.1,
    ),
}


# the others compile for a minute, above all the second derivatives of grouped convolutions
over_cases = pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "conv4", "mini-imagenet"))]
)


def initial(case):
    return jax.tree.map(np.asarray, jax.jit(case.init)(jax.random.key(0)))


@over_cases
def test_the_reference_is_brute_force(name, x64):
    case = SMALL[name]
    params, tasks = cast((initial(case), case.tasks), np.float64)
    each = [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(case.num_tasks)]
    batches = [([task.support] * case.num_steps, task.query) for task in each]
    brute_force = jax.jit(
        lambda params: mean_meta_gradient(case.plain_loss, sgd(case.learning_rate), params, (), batches)
    )
    _, expected, _ = brute_force(params)
    assert relative_error(plain_gradient(case, params, np.float64), expected) < 1e-10


@over_cases
def test_jaxmeta_and_plain_jax_agree_with_the_reference(name):
    checked = list(throughput.check(SMALL[name], initial(SMALL[name]), [JAXMETA, PLAIN], tolerance=1e-3))
    assert len(checked) == 2
    for _, step, verdict in checked:
        assert step is not None and verdict["error_float64"] < 1e-10


def test_plain_jax_has_the_networks_convolutions_but_as_lax_convolutions():
    case = SMALL["conv4"]
    params, batch = initial(case), jax.tree.map(lambda x: x[0], case.tasks.support)
    plain, ours = (str(jax.make_jaxpr(loss)(params, batch)) for loss in (case.plain_loss, case.loss))
    assert plain.count("conv_general_dilated[") == 4 and "conv_general_dilated[" not in ours


def build_wrong(case, params, dtype):
    """With a rate that is wrong in the seventh digit: float32 would not tell."""
    return build_jaxmeta(case._replace(learning_rate=case.learning_rate * (1 + 1e-6)), params, dtype)


def build_wrong_in_float32(case, params, dtype):
    return build_jaxmeta(case if dtype == np.float64 else case._replace(num_steps=1), params, dtype)


def build_with_a_flip(case, params, dtype):
    """As if rounding changed the meta-gradient of the first of the small MLP's tasks."""
    x, y = case.tasks.support
    is_first = x[:, :1] == SMALL["mlp"].tasks.support[0][0, :1]
    support = (x, np.where(is_first & (dtype == np.float32), 3 * y, y))
    return build_jaxmeta(case._replace(tasks=case.tasks._replace(support=support)), params, dtype)


def build_absent(case, params, dtype):
    raise Unavailable("not installed")


@pytest.fixture(scope="module")
def rows():
    """Of a competition with cheats, by contender."""
    cheats = {
        "wrong": build_wrong,
        "wrong in float32": build_wrong_in_float32,
        "flip": build_with_a_flip,
        "absent": build_absent,
    }
    contenders = [JAXMETA, JAXMETA_LOOP, PLAIN, *(Contender(name, build) for name, build in cheats.items())]
    return {row["contender"]: row for row in throughput.compete("small", SMALL["mlp"], contenders, num_rounds=2)}


def test_those_who_agree_compete(rows):
    for name in ("jaxmeta", "jaxmeta, as fit", "plain JAX", "matrix product"):
        assert "skipped" not in rows[name] and len(rows[name]["samples"]) == 2
    assert rows["jaxmeta"]["error_float64"] < 1e-9 and rows["jaxmeta"]["speed_relative_to_jaxmeta"] == 1
    assert rows["jaxmeta"]["tasks_per_second"] == pytest.approx(3 / rows["jaxmeta"]["median"])


def test_a_wrong_contender_is_refused(rows):
    assert "another meta-gradient" in rows["wrong"]["skipped"] and "samples" not in rows["wrong"]
    assert 1e-9 < rows["wrong"]["error_float64"] < 1e-5 and rows["wrong"]["error_float32"] < 1e-5


def test_one_that_is_wrong_only_as_it_would_be_timed_is_refused(rows):
    cheat = rows["wrong in float32"]
    assert "as timed" in cheat["skipped"] and "on the task that agrees best" in cheat["skipped"]
    assert cheat["error_float64"] < 1e-9 and "samples" not in cheat


def test_one_whose_rounding_changes_a_single_task_competes(rows):
    assert rows["flip"]["error_float32"] > 0.1 and rows["flip"]["error_float32_of_a_task"] < 1e-5
    assert "samples" in rows["flip"] and rows["wrong in float32"]["error_float32_of_a_task"] > 1e-3


def test_one_that_cannot_run_is_left_out_with_its_reason(rows):
    assert rows["absent"] == {"case": "small", "contender": "absent", "skipped": "not installed"}


def test_the_fastest_layout_competes_and_tells_of_the_others():
    def entry(name, layout, seconds=None):
        contender = Contender(name, build_absent, layout)
        if seconds is None:
            return contender, None, {"skipped": f"no {layout}"}
        return contender, MetaStep(Program(lambda: time.sleep(seconds), lambda: None), {}), {"error_float64": 0.0}

    checked = [entry("two", "slow", 0.02), entry("two", "wrong"), entry("two", "quick", 1e-3)]
    checked += [entry("one", "absent"), entry("one", "there", 1e-3), entry("none", "first"), entry("none", "second")]
    two, one, none = throughput.in_best_layouts(checked)
    assert two[0].layout == two[2]["layout"] == "quick" and two[1] is not None
    assert list(two[2]["seconds_of_layouts"]) == ["slow", "quick"]
    assert one[0].layout == "there" and one[2] == {"error_float64": 0.0}
    assert none[1] is None and none[2] == {"skipped": "no first"}


def test_jaxmeta_itself_may_not_be_wrong():
    with pytest.raises(RuntimeError, match="jaxmeta computes another meta-gradient"):
        throughput.compete("small", SMALL["mlp"], [Contender("jaxmeta", build_wrong)], num_rounds=2)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow if name in ("resnet12", "transformer") else []) for name in FAMILIES],
)
def test_every_case_can_be_differentiated(family):
    build, variants = FAMILIES[family]
    case = build(1, variants[0][1])
    params = jax.eval_shape(case.init, jax.random.key(0))
    grads = jax.eval_shape(jax.grad(case.plain_loss), params, jax.tree.map(lambda x: x[0], case.tasks.support))
    assert jax.tree.structure(grads) == jax.tree.structure(params) and case.flops() > 0


@pytest.mark.filterwarnings("ignore")  # of others' libraries
@over_cases
def test_pytorch_agrees(name):
    """Every library that is there, in every layout; whether it is, is for the one who installs it to see."""
    pytest.importorskip("torch", reason="pip install -e '.[peers]' adds PyTorch's libraries")
    from benchmarks.shared.peers import CHECKPOINTED, CONTENDERS

    case, ran = SMALL[name], set()
    for contender, step, verdict in throughput.check(case, initial(case), [*CONTENDERS, CHECKPOINTED], tolerance=1e-3):
        if not any(reason in verdict.get("skipped", "") for reason in ("No module named", "there are no images")):
            assert step is not None, (contender.name, contender.layout, verdict)
            ran.add(contender.layout or "contiguous")
    layouts = {"contiguous", "channels_last"} if "conv" in type(case.network).__name__.lower() else {"contiguous"}
    assert ran == layouts
