"""Multilayer perceptrons for scikit-learn users, trained by backpropagation in compiled code."""

from fastbp.classifier import BackpropClassifier

__version__ = "0.1.0"

__all__ = ["BackpropClassifier"]
