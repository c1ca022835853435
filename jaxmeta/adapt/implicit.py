"""Implicit meta-gradients: differentiate the solution of the inner problem, not the way to it.

With a fast step φ ↦ Φ(φ, θ) whose fixed point the inner loop has reached, φ* = Φ(φ*, θ),

    dL'(φ*)/dθ = v ∂Φ/∂θ   with   v (I − ∂Φ/∂φ) = ∇L'(φ*).

For gradient descent on L(φ) + λ/2 |φ − θ|², which is `proximal(sgd(α), λ)`, the matrix is α (∇²L + λ I) and
∂Φ/∂θ = α λ I: the meta-gradient of iMAML, (I + ∇²L / λ)⁻¹ ∇L'. Only products with the matrix are needed.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxmeta.adapt.meta_gradients import MetaGradient, TaskGradient, resumed
from jaxmeta.checks import check_arguments, check_flag, check_integer, check_number
from jaxmeta.traced import trace, used_inputs
from jaxmeta.types import MetaParams, PyTree


class Solver(Protocol):
    """Solves A x ≈ b from products with A alone: what `solver` of `implicit` may be.

    It is called with (matrix, b, start):

    - matrix, x -> A x, linear, of a pytree with the structure and the shapes of the fast weights, into the same;
    - b, such a pytree;
    - start, another: where to begin, the solution of the last outer step; None where there is none, for zeros.

    It returns x. Any of `jax.scipy.sparse.linalg` becomes one by leaving out what it says of its iterations.

    >>> import jax.numpy as jnp
    >>> bicgstab = lambda matrix, b, start: jax.scipy.sparse.linalg.bicgstab(matrix, b, start)[0]
    >>> bicgstab(lambda x: {"w": 2.0 * x["w"]}, {"w": jnp.array([4.0])}, None)["w"].tolist()
    [2.0]
    """

    def __call__(self, matrix: Callable[[PyTree], PyTree], b: PyTree, start: PyTree | None, /) -> PyTree: ...


def conjugate_gradient(num_steps: int = 5) -> Solver:
    """`num_steps` conjugate gradient steps, for a positive definite matrix; exact after as many as its rank.

    It stops earlier where the residual is down to rounding: a step more would divide 0 by 0.

    Hestenes, Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems" (1952),
    https://doi.org/10.6028/jres.049.044

    Args:
      num_steps: steps, each of one product with the matrix, at least 1.

    Raises:
      ValueError: `num_steps` is no positive integer.

    >>> import jax.numpy as jnp
    >>> conjugate_gradient(2)(lambda x: jnp.array([2.0, 4.0]) * x, jnp.array([2.0, 8.0]), jnp.zeros(2)).tolist()
    [1.0, 2.0]
    """
    check_integer("num_steps", num_steps, minimum=1)

    def solve(matrix: Callable[[PyTree], PyTree], b: PyTree, start: PyTree | None) -> PyTree:
        rounding = min(jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves(b))
        return jax.scipy.sparse.linalg.cg(matrix, b, start, maxiter=num_steps, tol=float(rounding))[0]

    return solve


def neumann_series(num_terms: int = 5) -> Solver:
    """The first terms of A⁻¹ = Σ_j (I − A)^j, for a matrix A within 1 of the identity: small inner rates.

    With A = I − ∂Φ/∂φ the terms are powers of ∂Φ/∂φ: the reverse sweep of an inner loop that has stood at its fixed
    point for `num_terms` steps. From a start it is x ← x + b − A x, as often: one of these for each inner and each
    outer step is SOBA's, a few are AmIGO's; the terms anew each time are StocBiO's (`bilevel`).

    Lorraine, Vicol, Duvenaud, "Optimizing Millions of Hyperparameters by Implicit Differentiation" (2020),
    https://arxiv.org/abs/1911.02590

    Args:
      num_terms: n ≥ 1, terms, each of one product with the matrix, but for the first without a start, which is b: n
        products from a start, n − 1 without.

    Raises:
      ValueError: `num_terms` is no positive integer.

    >>> neumann_series(3)(lambda x: 0.5 * x, 1.0, None).item()  # 1 + 1/2 + 1/4
    1.75
    """
    check_integer("num_terms", num_terms, minimum=1)

    def solve(matrix: Callable[[PyTree], PyTree], b: PyTree, start: PyTree | None) -> PyTree:
        add_term = lambda _, x: jax.tree.map(lambda x, ax, b: x - ax + b, x, matrix(x), b)
        num_products = num_terms if start is not None else num_terms - 1
        return jax.lax.fori_loop(0, num_products, add_term, b if start is None else start)

    return solve


def implicit(*, solver: Solver | None = None, damping: float = 0.0, warm_start: bool = True) -> MetaGradient:
    """The meta-gradient of the inner problem's solution, whatever way the inner loop took: memory independent of K.

    It is as exact as the inner loop has converged and the solver has solved. The inner optimizer is gradient descent,
    with a `proximal` term if the solution is to depend on the initialisation: without it, where nothing else that is
    learned is read by the inner steps or the outer loss, there is no gradient, and the first trace says so. The
    solution does not depend on a learned rate: what that gets, −v · ∇L(φ), is 0 there, and before it says how far the
    loop is from it, and nothing of the rate. The matrix is taken at the last of the `sources`.

    Where the inner problem lives on (`bilevel`), so do its solution and that of the linear system: a few steps of each
    for each outer step are enough.

    Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients" (2019), https://arxiv.org/abs/1909.04630;
    Dagréou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables stochastic and global variance
    reduction algorithms" (2022), https://arxiv.org/abs/2201.13409

    Args:
      solver: (matrix, b, start) -> x with matrix(x) ≈ b, see `Solver`: `conjugate_gradient`, `neumann_series`, or
        another; `conjugate_gradient(5)` if None.
      damping: δ ≥ 0, added to the matrix as δ I, for inner problems that are not convex enough. With `proximal(sgd(α),
        λ)` it makes the curvature that counts λ + δ / α: the authors' code has 24 where λ is 2.
      warm_start: of an inner problem that lives on, the solver starts from its last solution; from 0 if False.

    Raises:
      ValueError: `solver` is no function, or `damping` is negative or not finite; while tracing, the inner optimizer
        has a state, such as a momentum, so that its steps are not a map of the fast weights, or the solution does not
        depend on what is learned.

    >>> strategy = implicit(solver=conjugate_gradient(10))
    """
    solve = conjugate_gradient(5) if solver is None else solver
    check_arguments("solver", solve, ("matrix", "b", "start"), "call what makes one, as in conjugate_gradient(5)")
    check_flag("warm_start", warm_start)
    check_number("damping", damping)

    def strategy(adapt: Callable, outer: Callable) -> Callable:
        def window(key, meta_params: MetaParams, sources: PyTree, task: PyTree, carry: PyTree, is_new: Any):
            before, solution = (None, None) if carry is None else carry
            start = resumed(adapt, meta_params, sources, task, before, is_new)
            _, state = jax.lax.stop_gradient(adapt(meta_params, sources, task, state=start))
            if jax.tree.leaves(state.opt_state):
                raise ValueError("implicit needs an inner optimizer without a state: proximal(sgd(...), strength)")
            none, last = (jax.tree.map(lambda s, cut=cut: s[cut], sources) for cut in (slice(0, 0), slice(-1, None)))

            def query_loss(meta_params: MetaParams, fast: PyTree):
                return outer(adapt(meta_params, none, task, state=state._replace(fast=fast))[0], task)

            def step(meta_params: MetaParams, fast: PyTree) -> PyTree:
                return adapt(meta_params, last, task, state=state._replace(fast=fast))[1].fast

            _check_that_it_matters(query_loss, step, meta_params, state.fast)
            value, (direct, fast_bar) = jax.value_and_grad(query_loss, (0, 1), has_aux=True)(meta_params, state.fast)
            _, through_fast = jax.vjp(lambda fast: step(meta_params, fast), state.fast)
            _, through_meta = jax.vjp(lambda meta_params: step(meta_params, state.fast), meta_params)
            matrix = lambda v: jax.tree.map(lambda v, phi: (1 + damping) * v - phi, v, through_fast(v)[0])
            guess = None
            if warm_start and solution is not None:
                guess = jax.tree.map(lambda x: jnp.where(is_new, 0, x), solution)
            solution = solve(matrix, fast_bar, guess)
            return value, optax.tree.add(direct, through_meta(solution)[0]), (state, solution)

        return TaskGradient(window, lambda meta_params, state: (state, optax.tree.zeros_like(state.fast)))

    return strategy


def _check_that_it_matters(query_loss: Callable, step: Callable, meta_params: MetaParams, fast: PyTree) -> None:
    """Refuses a solution that no learned parameter has a part in: where the loop starts is no part of it."""

    field = "params" if jax.tree.leaves(meta_params.params) else "hyper"

    def solution(learned: PyTree, fast: PyTree) -> tuple[jax.Array, PyTree]:
        given = meta_params._replace(**{field: learned})
        return query_loss(given, fast)[0], step(given, fast)

    learned = getattr(meta_params, field)
    used = used_inputs(trace(solution, learned, fast)[0])[: len(jax.tree.leaves(learned))]
    if not any(used):
        raise ValueError(
            "meta_gradient=adapt.implicit() must be of an inner problem that depends on what is learned, got one whose "
            "steps and outer loss do not read it: the gradient would be 0, for where the inner loop starts is no part "
            "of its solution. Draw it back there, inner_optimizer=adapt.proximal(adapt.sgd(0.01), strength=2.0) as in "
            "jaxmeta.imaml, or take another meta_gradient, such as adapt.exact()"
        )
