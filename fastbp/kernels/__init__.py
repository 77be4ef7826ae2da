"""The compiled core: matrix products, forward and backward passes, threads.

Nothing in this package checks its input: :mod:`fastbp.estimator` refuses bad
input before any kernel runs.
"""
