"""One of several processes that train together, or one alone: run by test_processes.py, which looks at what it prints.

    python tests/one_process.py NUM_DEVICES DIRECTORY,... NUM_STEPS [HOST:PORT NUM_PROCESSES PROCESS_ID]

A callback prints the steps, so that it can be killed between two of them; the last line is JSON, of each directory.
"""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta
from jaxmeta import adapt, training

num_devices, directories, num_steps = int(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
if num_devices:  # 0 where nothing is shared
    jax.config.update("jax_num_cpu_devices", num_devices)
if len(sys.argv) > 4:
    jaxmeta.join_processes(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))

learner = jaxmeta.bilevel(  # each of whose problems lives on, on the device that has it
    lambda key, m: jax.random.normal(key),
    lambda key: {"rate": jnp.float32(0.3), "aim": jnp.float32(0.5)},
    lambda w, m, batch: (m["rate"] * jnp.mean((w * batch[0] + m["aim"] - batch[1]) ** 2), {}),
    num_inner_steps=2,
    lifetime=6,
    num_problems=8,
    inner_optimizer=adapt.sgd(0.1),
    meta_gradient=adapt.exact(),
    optimizer=optax.adam(1e-2),
    microbatch=1,
)
tasks = jaxmeta.tasks.linear()


def numbers(directory):
    state, history = jaxmeta.fit(
        jax.random.key(0),
        learner,
        tasks,
        num_outer_steps=num_steps,
        num_tasks=8,
        chunk_size=2,
        checkpointer=training.Checkpointer(directory, every_steps=2),
        callbacks=[lambda state, metrics: print("step", int(state.step), flush=True)],
        progress=False,
    )
    report = jaxmeta.evaluate(jax.random.key(1), learner, tasks, state.meta_params, num_tasks=8)
    training.save_state(f"{directory}/own", num_steps, state)
    own = training.restore_state(f"{directory}/own", jax.eval_shape(learner.init, jax.random.key(0)))
    found = {"loss": history["loss"], "judged": report.samples["loss"], "aim": own.meta_params.params["aim"]}
    return {name: np.asarray(value).tolist() for name, value in found.items()}


with jaxmeta.over_devices() if num_devices else contextlib.nullcontext():
    print(json.dumps([numbers(directory) for directory in directories]), flush=True)
