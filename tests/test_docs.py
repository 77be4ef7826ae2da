"""The code in the documentation runs, and its table of scikit-learn's MLP is complete."""

import re
from pathlib import Path

import pytest
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fastbp import BackpropClassifier, BackpropRegressor

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)
    assert blocks
    if any("plots" in block for block in blocks):
        pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed").use("Agg")
    if any("onnxruntime" in block for block in blocks):
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:  # each goes on where the last ended
        exec(block, names)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", text_of(page)):
            assert link.startswith("http") or (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def rows(section):
    """The names in the table of a section of the page, for the classifier and for the regressor."""
    part = text_of("docs/coming_from_scikit_learn.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = {"classifier": [], "regressor": []}
    for names, which in re.findall(r"^\| (`.*?`) \| (both|classifier|regressor) \|", part, re.MULTILINE):
        for kind in found if which == "both" else [which]:
            found[kind] += re.findall(r"`(\w+)`", names)
    return found["classifier"], found["regressor"]


PAIRS = [(BackpropClassifier, MLPClassifier), (BackpropRegressor, MLPRegressor)]


def test_table_of_parameters_is_complete():
    for found, (ours, theirs) in zip(rows("Parameters"), PAIRS, strict=True):
        assert sorted(found) == sorted(ours().get_params())
        assert set(found) >= set(theirs().get_params())


def test_table_of_methods_is_complete():
    for found, classes in zip(rows("Methods"), PAIRS, strict=True):
        ours, theirs = ({name for name in dir(cls) if name[0] != "_" and name[-1] != "_"} for cls in classes)
        assert sorted(found) == sorted(ours)
        assert ours >= theirs


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_table_of_attributes_is_complete(solver):
    X, y = load_iris(return_X_y=True, as_frame=True)
    for found, classes in zip(rows("Attributes"), PAIRS, strict=True):
        fitted = [cls(solver=solver, max_iter=2).fit(X, y) for cls in classes]
        ours, theirs = ({name for name in dir(m) if name.endswith("_") and name[0] != "_"} for m in fitted)
        assert sorted(found) == sorted(ours)
        assert ours >= theirs
