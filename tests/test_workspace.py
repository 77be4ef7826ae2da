import sys
from itertools import product

import numpy as np
import pytest
from guards import Fences, run_alone

from fastbp.activations import Tanh
from fastbp.codegen.bitmask import MASK_BITS
from fastbp.dropout import Dropout
from fastbp.initializers import initial_parameters
from fastbp.kernels import session, threads
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import BLOCK_ROWS, LARGE
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.kernels.tuner import ThreadTuner
from fastbp.losses import Loss

# Units, samples, and rows of a batch and of a chunk. No input is zero: index lists are then as long as they can be.
CASES = [
    # So many parameters that whole blocks are prefetched: the lists of cache lines.
    ([BLOCK_ROWS, 9000, 16], 70, 70, 70),
    # Chunks, with a row in a group of masks of its own: the masks, and the lists over the rows.
    ([5 * BLOCK_ROWS, 48, 16], 45, 2 * (MASK_BITS + 1), MASK_BITS + 1),
    # More inputs than rows, one of them in a group of its own: the list over the inputs. Transposed storage.
    ([6 * MASK_BITS + 1, 48, 1], 9, 2, 2),
    # One by one.
    ([5, 7, 3], 9, 1, 1),
]


def _unaligned(values):
    """A copy that does not begin at a cache line, and so lies in one more."""
    whole = np.empty(values.size + 1, values.dtype)
    whole[1:] = values
    return whole[1:]


def _fenced(record):
    """The arrays that a session allocates end at fences; those that it is given stay what they are."""
    given = ("params", "first", "second")
    return record._replace(**{
        name: Fences().array(values) for name, values in record._asdict().items() if name not in given
    })  # fmt: skip


def _train(case, dtype, n_threads, sparse, keep, fenced):
    """Train for an epoch; return all that it leaves."""
    units, n, batch_size, chunk = case
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(n, width)).astype(dtype) for width in (units[0], units[-1]))
    activations = [Tanh()] * (len(units) - 1)
    # Where all is kept, there is also what dropout and clipping need.
    dropout = [Dropout(0.3)] * (len(units) - 2) if keep else ()
    network = make_network(units, activations, dtype, batch_size, dropout=dropout)
    assert network.has_transposed == (units[-1] == 1)
    params = network.pack(*initial_parameters(units, [6.0] * len(activations), np.random.RandomState(0), dtype))
    assert (3 * params.nbytes >= LARGE) == (units[1] == 9000)
    params, first, second = map(_unaligned, (params, np.zeros_like(params), np.zeros_like(params)))
    settings = StepSettings(
        Loss("squared_error", (0.0,) * units[-1]),
        "adam",
        alpha=0.1,
        batch_size=batch_size,
        n_jobs=n_threads,
        max_grad_norm=0.1 if keep else None,
    )
    session.workspace_rows = lambda network: chunk
    trained = Session(network, params, OptimizerState(first, second, 0.01), settings, n, sparse=sparse, keep=keep)
    if fenced:
        trained._arrays, trained._training_arrays = _fenced(trained._arrays), _fenced(trained._training_arrays)
    trained._tuner = ThreadTuner({trained.n_threads}, 1e-9)  # the whole epoch in one call
    n_batches = -(-n // batch_size)
    trained.run(Data(X, Y, np.empty(0, dtype), np.arange(n)), np.full(n_batches, 0.01))
    return trained.losses[0], params.tobytes(), first.tobytes(), second.tobytes()


def _check_sessions():
    """Runs in a process that ends where anything after an array is read or written."""
    teams = []
    new_team, threads.new_team = threads.new_team, lambda wanted: teams.append(new_team(wanted)) or teams[-1]
    threads.thread_count = lambda n_jobs, work, least: n_jobs
    for case, dtype, sparse, keep in product(CASES, (np.float32, np.float64), (False, True), (False, True)):
        expected = _train(case, dtype, 1, sparse, keep, fenced=False)
        assert np.isfinite(expected[0])
        assert _train(case, dtype, 1, sparse, keep, fenced=True) == expected
        # A thread that comes late is not waited for: the one that has the ends of all arrays must have been in time.
        for _ in range(20):
            assert _train(case, dtype, 2, sparse, keep, fenced=True) == expected
            if teams[-1][threads._SIZE] == 2 or len(teams[-1]) == len(new_team(1)):
                break
        else:
            raise AssertionError("no team of two")
    print("inside")


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_a_session_stays_inside_its_arrays(tmp_path):
    assert run_alone("test_workspace._check_sessions()", tmp_path) == "inside\n"
