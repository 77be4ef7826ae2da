"""Multilayer perceptrons for scikit-learn users, trained by backpropagation in compiled code."""

from fastbp.classifier import BackpropClassifier
from fastbp.onnx import to_onnx
from fastbp.persistence import load, save
from fastbp.regressor import BackpropRegressor
from fastbp.state import FormatError
from fastbp.system import show_versions, warmup
from fastbp.tabular import make_tabular_classifier, make_tabular_regressor

__version__ = "0.1.0"

__all__ = [
    "BackpropClassifier", "BackpropRegressor", "FormatError", "load", "make_tabular_classifier",
    "make_tabular_regressor", "save", "show_versions", "to_onnx", "warmup",
]  # fmt: skip
