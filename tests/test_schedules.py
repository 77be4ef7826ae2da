"""Learning rates over the steps of a training."""

import numpy as np
import pytest

from fastbp.schedules import after_epoch, after_plateau, step_rates


@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
def test_no_change_from_step_to_step(schedule):
    np.testing.assert_array_equal(step_rates(schedule, 0.3, 5, 4, 10), [0.3] * 4)


def test_cosine():
    rates = step_rates("cosine", 0.4, 0, 101, 101)
    assert rates[0] == 0.4
    assert rates[50] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0, abs=1e-15)
    assert (np.diff(rates) < 0).all()


def test_one_cycle():
    rates = step_rates("one_cycle", 0.5, 0, 101, 101)
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[30] == pytest.approx(0.5)
    assert rates.argmax() == 30
    assert rates[100] == pytest.approx(0.5 / 25 * 1e-4)
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_parts_are_the_whole_and_the_end_goes_on(schedule):
    whole = step_rates(schedule, 0.1, 0, 50, 50)
    np.testing.assert_array_equal(np.hstack([step_rates(schedule, 0.1, i, 10, 50) for i in range(0, 50, 10)]), whole)
    np.testing.assert_array_equal(step_rates(schedule, 0.1, 60, 3, 50), [whole[-1]] * 3)
    assert np.isfinite(step_rates(schedule, 0.1, 0, 1, 1)).all()


def test_after_an_epoch_and_at_a_standstill():
    assert after_epoch("constant", 0.3, 0.5, 99, 0.5) == 0.3
    assert after_epoch("invscaling", 0.3, 0.5, 99, 0.5) == pytest.approx(0.05)
    assert after_plateau("constant", 0.3) is None
    assert after_plateau("adaptive", 0.3) == pytest.approx(0.06)
    assert after_plateau("adaptive", 1e-6) is None
