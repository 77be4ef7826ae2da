"""Multilayer perceptrons for scikit-learn users, trained by backpropagation in compiled code."""

from fastbp.classifier import BackpropClassifier
from fastbp.onnx import to_onnx
from fastbp.regressor import BackpropRegressor
from fastbp.system import show_versions, warmup
from fastbp.tabular import make_tabular_classifier, make_tabular_regressor

__version__ = "0.1.0"

__all__ = [
    "BackpropClassifier", "BackpropRegressor", "make_tabular_classifier", "make_tabular_regressor", "show_versions",
    "to_onnx", "warmup",
]  # fmt: skip
