import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import fastbp

PACKAGE = Path(fastbp.__file__).parent
FORMULAS = {"activations", "dropout", "initializers", "losses", "optimizers", "schedules", "stopping"}
# From the bottom to the top; a module imports only from the floors below. In CONTRIBUTING.md codegen is one floor, and
# so are the kernels.
FLOORS = [
    {"compat", "files", "interrupts", "user_warnings"},
    {"codegen.caches", "codegen.target"},
    {"codegen.emit"},
    {"codegen.jit"},
    {"codegen.atomics", "codegen.bitmask", "codegen.memory", "codegen.processor", "codegen.tiles", "codegen.vectors"},
    {"codegen.elementary", "codegen.random_bits", "codegen.rows", "codegen.transpose"},
    FORMULAS,
    {"kernels.plan"},
    {"kernels.network"},
    {"kernels.records"},
    {
        "kernels.csr_matrix", "kernels.lazy", "kernels.matmul", "kernels.prefetch", "kernels.shuffle",
        "kernels.evaluation", "kernels.few", "kernels.threads", "kernels.tuner", "kernels.workspace",
    },
    {"kernels.csr", "kernels.gather", "kernels.unpacked", "kernels.sparse", "kernels.workers"},
    {"kernels.short_calls"},
    {"kernels.addresses", "kernels.epochs", "kernels.gradient"},
    {"kernels.backprop"},
    {"kernels.online", "kernels.prediction"},
    {"kernels.embedded", "kernels.session"},
    {"fit_callbacks", "inputs", "lbfgs", "prediction", "progress"},
    {"calls", "checkpoints", "compiled", "state", "training", "validation"},
    {"estimator"},
    {"classifier", "inspection", "regressor"},
    {"persistence", "tabular.encoding", "tabular.networks"},
    {"callbacks", "tabular.columns"},
    {"tabular.ensembles"},
    {"tabular.factories"},
    {"tabular"},
    {"onnx", "plots", "system", "__main__"},
]  # fmt: skip
# These stand beside the house: readers of data, and the same network in plain NumPy.
APART = {"", "datasets", "plain"}
# All that these modules may import of codegen and the kernels: each passes the work on only to the next.
DOORS = {
    "classifier": set(),
    "onnx": set(),
    "regressor": set(),
    "tabular.ensembles": {"kernels.threads"},
    "lbfgs": set(),
    "compiled": {
        "codegen.jit", "codegen.memory", "kernels.addresses", "kernels.embedded", "kernels.network", "kernels.records",
    },
    "inputs": {"kernels.records"},
    "estimator": {"kernels.csr_matrix", "kernels.network", "kernels.plan", "kernels.records", "kernels.session"},
    "inspection": {"kernels.csr_matrix", "kernels.network", "kernels.records", "kernels.session"},
    "state": {"kernels.network", "kernels.session"},
    "persistence": set(),
    "callbacks": set(),
    "calls": set(),
    "checkpoints": set(),
    "progress": set(),
    "training": {"kernels.session", "kernels.shuffle"},
    "validation": {"kernels.csr_matrix", "kernels.evaluation"},
    "prediction": {
        "kernels.addresses", "kernels.csr_matrix", "kernels.network", "kernels.plan", "kernels.prediction",
        "kernels.records", "kernels.short_calls", "kernels.threads", "kernels.workers", "kernels.workspace",
    },
    "kernels.records": {"kernels.network", "kernels.plan", "codegen.jit", "codegen.memory"},
    "kernels.network": {"codegen.target", "codegen.tiles", "kernels.plan"},
    "kernels.plan": {"codegen.bitmask", "codegen.caches", "codegen.target", "codegen.tiles"},
}  # fmt: skip


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def imports(module):
    """Names of all modules that a module imports, in functions too; those of ours without `fastbp.`."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            # `from package import module` imports the module, not only the package.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if name.removeprefix("fastbp.") in TREES}
            found |= modules or {node.module}
    return {name.removeprefix("fastbp.") for name in found}


def ours(module):
    return imports(module) & set(TREES)


def floor(module):
    """The number of a module's floor."""
    (number,) = (number for number, modules in enumerate(FLOORS) if module in modules)
    return number


# The packages themselves import nothing.
MODULES = sorted(set(TREES) - APART - {"codegen", "kernels"})


def test_every_module_has_a_floor():
    assert len(MODULES) > 40
    assert set(MODULES) == set().union(*FLOORS) and not ours("codegen") | ours("kernels")
    # What the search for imports must find, or the tests below find nothing.
    assert {"kernels.gradient", "kernels.threads", "codegen.memory", "losses"} <= ours("kernels.backprop")
    assert "numba" in imports("kernels.threads") and "sklearn.base" in imports("estimator")


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    for other in ours(module) - APART:
        assert floor(other) < floor(module), f"{module} imports {other}, which is not on a floor below"


@pytest.mark.parametrize("module", DOORS)
def test_what_is_imported_of_the_kernels(module):
    found = {other for other in ours(module) if other.startswith(("codegen", "kernels"))}
    assert found <= DOORS[module], f"{module} imports {sorted(found - DOORS[module])}"


def test_layout_and_records_know_no_formula():
    for module in ("kernels.network", "kernels.plan", "kernels.records"):
        assert not ours(module) & FORMULAS, module


def test_chain_from_the_classifier_to_the_register_tile():
    chain = [
        "classifier", "estimator", "kernels.session", "kernels.backprop", "kernels.matmul", "codegen.tiles",
    ]  # fmt: skip
    for upper, lower in pairwise(chain):
        assert lower in ours(upper), f"{upper} does not import {lower}"
    assert {"losses", "activations"} <= ours("kernels.backprop") and "optimizers" in ours("kernels.gradient")


def test_only_the_estimator_knows_the_loop_over_epochs():
    assert {module for module in TREES if "training" in ours(module)} == {"estimator"}


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter({module: ours(module) for module in TREES}).prepare()  # a circle is an error


def test_who_speaks_llvm_and_who_counts_threads():
    speakers = {module for module in TREES if "llvmlite" in imports(module)}
    builders = {module for module in TREES if "codegen.emit" in ours(module)}
    assert all(module.startswith("codegen.") for module in builders | speakers - {"compat", "codegen.target", "system"})
    assert len(speakers) > 5
    called = {
        (module, node.func.attr)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    for name in ("set_num_threads", "get_num_threads", "threading_layer"):
        assert {module for module, attribute in called if attribute == name} == {"kernels.threads"}


IMPORT = """
import gc
import fastbp
from numba.core.dispatcher import Dispatcher
from numba.np.ufunc import parallel
found = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and d.__module__.startswith("fastbp")]
assert len(found) > 10, found
print([d for d in found if d.signatures], parallel._is_initialized)
"""


def test_import_compiles_nothing(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    # Nothing compiled, no thread started, nothing written.
    assert (done.returncode, done.stdout) == (0, "[] False\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
