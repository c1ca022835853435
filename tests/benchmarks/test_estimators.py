"""The benchmark of meta-gradient estimators: one inner episode is enumerated, and what it reports is consistent."""

import json

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.estimators import ESTIMATORS, RATE, _data, _estimates
from benchmarks.shared.enumerated import PARAMS, sampled_adapted_return


@pytest.mark.parametrize("name", ["E-MAML", "E-MAML, baseline"])
def test_e_maml_is_unbiased_for_its_own_objective(name, x64):
    """Every batch of one episode, as often as it is likely."""
    data, likelihood = _data(3)
    each = jax.jit(lambda counts: _estimates(ESTIMATORS[name], data, counts))(np.eye(len(likelihood)))
    exact = jax.jit(jax.grad(lambda params: sampled_adapted_return(params, data.episodes, RATE)))(PARAMS)
    np.testing.assert_allclose(np.tensordot(likelihood, each, 1), exact, rtol=1e-10)


@pytest.mark.slow
def test_estimators(tmp_path):
    path = tmp_path / "estimators.json"
    assert main(["estimators", "--quick", "--json", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = {(row["estimator"], row["num_episodes"]): row for row in json.loads(path.read_text())["rows"]}
    assert {name for name, _ in rows} == set(ESTIMATORS)
    for (name, number), row in rows.items():
        if "E-MAML" not in name:
            assert row["limit"] < 1e-12 if "DiCE" in name else row["limit"] > 0.05
            if number == 64:
                assert row["bias"] == pytest.approx(row["limit"], abs=4 * row["bias_standard_error"] + 0.01)
        # of 500 samples: error² = bias² + deviation²
        assert row["error"] ** 2 == pytest.approx(row["bias"] ** 2 + row["deviation"] ** 2, rel=0.01)
        if number == 64 and "E-MAML" not in name:  # sixteen times the episodes, a quarter of the deviation
            assert row["deviation"] == pytest.approx(rows[name, 4]["deviation"] / 4, rel=0.3)
    hessian = {name: rows[name, 4] for name in ("DiCE", "DiCE, baseline", "loaded DiCE, baseline")}
    assert all(row["hessian_bias"] < 1e-12 for row in hessian.values())
    assert min(hessian, key=lambda name: hessian[name]["hessian_deviation"]) == "loaded DiCE, baseline"
