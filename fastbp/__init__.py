"""Multilayer perceptrons for scikit-learn users, trained by backpropagation in compiled code."""

from fastbp.classifier import BackpropClassifier
from fastbp.regressor import BackpropRegressor
from fastbp.system import show_versions, warmup

__version__ = "0.1.0"

__all__ = ["BackpropClassifier", "BackpropRegressor", "show_versions", "warmup"]
