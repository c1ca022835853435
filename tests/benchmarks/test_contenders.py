"""All contenders compute one meta-gradient, and one that does not is found and not timed."""

import jax
import numpy as np
import pytest
from reference import mean_meta_gradient, sgd

from benchmarks import throughput
from benchmarks.cases import FAMILIES, Case, cast, episodes, regression, sequences
from benchmarks.contenders import JAXMETA, PLAIN, Contender, Unavailable, build_jaxmeta, relative_error
from jaxmeta import nn

SMALL = {
    "mlp": Case(nn.MLP((8, 6)), nn.mean_squared_error, regression(3, 5, 4), 2, 0.05),
    "conv4": Case(nn.Conv4(3, num_filters=4), nn.cross_entropy, episodes(3, 3, 1, 2, (12, 12, 1)), 2, 0.4, 1),
}
if hasattr(nn, "ResNet12"):
    SMALL["resnet12"] = Case(nn.ResNet12(3, (4, 6)), nn.cross_entropy, episodes(2, 3, 1, 2, (10, 10, 3)), 2, 0.05, 1)
if hasattr(nn, "Transformer"):
    network = nn.Transformer(num_outputs=7, max_length=6, num_tokens=7, num_layers=2, width=8, num_heads=2)
    SMALL["transformer"] = Case(network, nn.cross_entropy, sequences(2, 2, 3, 6, 7), 2, 0.1, 1)


@pytest.fixture(params=SMALL)
def case(request):
    return SMALL[request.param]


def initial(case):
    return jax.tree.map(np.asarray, case.init(jax.random.key(0)))


def peers():
    return pytest.importorskip(
        "benchmarks.peers", reason="pip install -e '.[peers]' adds PyTorch's libraries"
    ).CONTENDERS


@pytest.mark.parametrize("contender", [JAXMETA, PLAIN], ids=lambda contender: contender.name)
def test_the_gradient_is_that_of_brute_force(case, contender, x64):
    params = cast(initial(case), np.float64)
    tasks = cast(case.tasks, np.float64)
    each = [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(case.num_tasks)]
    batches = [([task.support] * case.num_steps, task.query) for task in each]
    _, expected, _ = mean_meta_gradient(case.plain_loss, sgd(case.learning_rate), params, (), batches)
    assert relative_error(contender.build(case, params, np.float64).gradient, expected) < 1e-10


def test_plain_jax_has_the_networks_convolutions_but_as_lax_convolutions():
    case = SMALL["conv4"]
    params, batch = initial(case), jax.tree.map(lambda x: x[0], case.tasks.support)
    plain, ours = (str(jax.make_jaxpr(loss)(params, batch)) for loss in (case.plain_loss, case.loss))
    assert plain.count("conv_general_dilated[") == 4 and "conv_general_dilated[" not in ours


def test_the_check_lets_those_who_agree_compete(case):
    rows = throughput.compete("small", case, [JAXMETA, PLAIN], num_rounds=2)
    assert [row["contender"] for row in rows] == ["jaxmeta", "plain JAX", "matrix product"]
    assert all("skipped" not in row and len(row["samples"]) == 2 for row in rows)
    jaxmeta_row = rows[0]
    assert jaxmeta_row["error_float64"] < 1e-9 and jaxmeta_row["speed_relative_to_jaxmeta"] == 1
    assert jaxmeta_row["tasks_per_second"] == pytest.approx(3 / jaxmeta_row["median"])


def test_a_wrong_contender_is_refused():
    """A rate that is wrong in the sixth digit: float32 would not tell."""
    case = SMALL["mlp"]

    def build(case, params, dtype):
        return build_jaxmeta(case._replace(learning_rate=case.learning_rate * (1 + 1e-6)), params, dtype)

    rows = throughput.compete("small", case, [JAXMETA, Contender("wrong", build)], num_rounds=2)
    wrong = next(row for row in rows if row["contender"] == "wrong")
    assert "another meta-gradient" in wrong["skipped"] and 1e-9 < wrong["error_float64"] < 1e-5
    assert "samples" not in wrong and "tasks_per_second" not in wrong


def test_one_that_is_wrong_in_float32_alone_is_refused():
    case = SMALL["mlp"]

    def build(case, params, dtype):
        return build_jaxmeta(case if dtype == np.float64 else case._replace(num_steps=1), params, dtype)

    (_, step, verdict), *_ = throughput.check(case, initial(case), [Contender("wrong", build)], tolerance=1e-2)
    assert step is None and "as timed" in verdict["skipped"]


def test_jaxmeta_itself_may_not_be_wrong():
    wrong = JAXMETA._replace(build=lambda case, *how: build_jaxmeta(case._replace(num_steps=1), *how))
    with pytest.raises(RuntimeError, match="jaxmeta computes another meta-gradient"):
        throughput.compete("small", SMALL["mlp"], [wrong], num_rounds=2)


def test_one_that_cannot_run_is_left_out_with_its_reason():
    def build(case, params, dtype):
        raise Unavailable("not installed")

    rows = throughput.compete("small", SMALL["mlp"], [JAXMETA, Contender("absent", build)], num_rounds=2)
    assert {"case": "small", "contender": "absent", "skipped": "not installed"} in rows


@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_has_finite_gradients(family):
    build, variants = FAMILIES[family]
    needs = {"resnet12": "ResNet12", "transformer": "Transformer"}.get(family, "MLP")
    if not hasattr(nn, needs):
        pytest.skip(f"no nn.{needs} yet")
    case = build(1, variants[0][1])
    grads = jax.eval_shape(jax.grad(case.plain_loss), initial(case), jax.tree.map(lambda x: x[0], case.tasks.support))
    assert jax.tree.structure(grads) == jax.tree.structure(initial(case)) and case.flops() > 0


@pytest.mark.parametrize("name", ["torch.func", "higher", "TorchOpt", "learn2learn"])
def test_pytorch_agrees(case, name):
    contender = next(contender for contender in peers() if contender.name == name)
    (_, step, verdict), *_ = throughput.check(case, initial(case), [contender], tolerance=1e-2)
    if "No module named" in verdict.get("skipped", ""):
        pytest.skip(verdict["skipped"])
    assert step is not None and verdict["error_float64"] < 1e-9
