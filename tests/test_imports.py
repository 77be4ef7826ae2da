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
# From the bottom to the top; a module imports only from its own floor and from those below, and never in a circle.
FLOORS = [
    {"compat", "user_warnings"},
    {"codegen.*"},
    {"activations", "initializers", "losses", "optimizers", "schedules"},
    {"kernels.*"},
    {"training", "prediction"},
    {"estimator"},
    {"classifier", "inspection"},
    {"plots", "system", "__main__"},
]
# These stand beside the house: readers of data, and the same network in plain NumPy.
APART = {"", "datasets", "plain"}


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
    names = {module, f"{module.split('.')[0]}.*"} if "." in module else {module}
    (number,) = (number for number, modules in enumerate(FLOORS) if names & modules)
    return number


# A package itself stands on the floor of its modules.
MODULES = sorted(set(TREES) - APART - {"codegen", "kernels"})


def test_every_module_has_a_floor():
    assert len(MODULES) > 40
    for module in MODULES:
        floor(module)
    # What the search for imports must find, or the tests below find nothing.
    assert {"kernels.gradient", "kernels.threads", "codegen.memory", "losses"} <= ours("kernels.backprop")
    assert "numba" in imports("kernels.backprop") and "sklearn.base" in imports("estimator")


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up(module):
    for other in ours(module) - APART:
        assert floor(other) <= floor(module), f"{module} imports {other}, which is on a floor above"


def test_chain_from_the_classifier_to_the_register_tile():
    chain = [
        "classifier", "estimator", "kernels.session", "kernels.backprop", "kernels.matmul", "codegen.tiles",
    ]  # fmt: skip
    for upper, lower in pairwise(chain):
        assert lower in ours(upper), f"{upper} does not import {lower}"
    assert {"losses", "activations"} <= ours("kernels.backprop") and "optimizers" in ours("kernels.gradient")


def test_only_the_estimator_knows_the_loop_over_epochs():
    assert {module for module in TREES if "training" in ours(module)} == {"estimator"}
    # What predicts or inspects a network needs no machine code of its own.
    for module in ("prediction", "inspection", "estimator", "training"):
        assert not {name for name in ours(module) if name.startswith("codegen")}


def test_formulas_know_no_kernel():
    for module in FLOORS[2]:
        assert all(floor(other) <= 1 for other in ours(module)), module


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
