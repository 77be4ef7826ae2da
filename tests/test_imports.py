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
# From the bottom to the top; a module may import only what stands further down.
LAYERS = [
    {"network", "schedules", "kernels.intrinsics", "kernels.jit"},
    {"kernels.simd", "kernels.tiles", "kernels.concurrency", "kernels.shuffle"},
    {"kernels.columns", "kernels.elementary", "kernels.matmul", "kernels.threads"},
    {"activations", "losses", "optimizers"},
    {"kernels.backprop"},
    {"kernels.prediction", "kernels.online"},
    {"training"},
    {"prediction"},
    {"estimator"},
    {"classifier", "inspection"},
    {"plots"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


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


def test_all_layers_are_there():
    assert set(LEVEL) <= set(TREES)
    # What the search for imports must find, or the tests below find nothing.
    assert {"kernels.backprop", "kernels.threads", "kernels.intrinsics", "losses"} <= ours("training")
    assert "numba" in imports("kernels.backprop") and "sklearn.base" in imports("estimator")


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_run_one_way(module):
    for other in ours(module):
        assert LEVEL.get(other, 100) < LEVEL[module], f"{module} imports {other}"


def test_chain_from_the_classifier_to_the_products():
    chain = ["classifier", "estimator", "training", "kernels.backprop", "kernels.matmul"]
    for upper, lower in pairwise(chain):
        assert lower in ours(upper)
    assert {"losses", "optimizers"} <= ours("kernels.backprop")
    # Each passes the work on only to the next.
    assert not {"kernels.backprop", "kernels.matmul"} & (ours("classifier") | ours("estimator"))


def test_network_imports_none_of_ours():
    assert ours("network") == set()


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter({module: ours(module) for module in TREES}).prepare()  # a circle is an error


def test_who_speaks_llvm_and_who_counts_threads():
    speakers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module, node.names[0].name) == ("llvmlite", "ir")
    }
    assert speakers == {f"kernels.{name}" for name in ("intrinsics", "simd", "tiles", "concurrency")}
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
