"""When a run ends by itself: a rule on the records of its evaluations."""

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.training.watching.early_stopping import StopConfig, check_stop, reason_to_stop, stopped_at


def course(*values, key="held_out_ce"):
    """Evaluations after 0, 10, 20 .. steps, with the steps between them."""
    pairs = [({"step": 10 * n, "ce": 9.0}, {"step": 10 * n, key: value}) for n, value in enumerate(values)]
    return [record for pair in pairs for record in pair]


@pytest.mark.parametrize(
    ("values", "settings", "stops"),
    [
        ((3.0, 2.0, 2.0), {"patience": 1}, True),  # as good is no better
        ((3.0, 2.0, 1.9), {"patience": 1}, False),
        ((3.0, 2.0, 2.1, 2.2), {"patience": 2}, True),
        ((3.0, 2.0, 2.1, 1.9, 2.0), {"patience": 2}, False),  # it got better in between
        ((3.0, 2.9, 2.8), {"patience": 2, "least": 0.25}, True),
        ((3.0, 2.9, 2.7), {"patience": 2, "least": 0.25}, False),  # of the best, not of the one before
        ((3.0, 4.0, 5.0), {}, False),
        ((3.0,), {"patience": 1}, False),
        ((), {"patience": 1}, False),
    ],
)
def test_it_stops_after_so_many_that_are_no_better(values, settings, stops):
    assert bool(reason_to_stop(StopConfig(**settings), course(*values))) == stops


def test_the_reason_names_what_the_best_was_and_when():
    why = reason_to_stop(StopConfig(2, "kd/phi", 0.5), course(3.0, 1.25, 1.0, 2.0, key="held_out_kd/phi"))
    assert why == "no held-out KD of phi better by 0.5 than 1.250, after step 10, in 2 evaluations (stop.patience)"


def test_a_run_that_has_stopped_is_known_by_the_evaluation_of_its_checkpoint():
    config, records = StopConfig(1), course(3.0, 2.0, 2.5)
    assert stopped_at(config, records, 20)
    assert stopped_at(config, records, 15) is None  # it stands before that evaluation
    assert stopped_at(config, records, 10) is None
    assert stopped_at(StopConfig(2), records, 20) is None  # more patience goes on


@pytest.mark.parametrize("settings", [{"patience": -1}, {"least": -0.1}, {"least": float("nan")}])
def test_values_that_mean_nothing_are_refused(settings):
    with pytest.raises(InputError, match=r"stop\."):
        StopConfig(**settings)


def test_what_it_stops_on_must_be_there():
    for on in ("ce", "kd", "kd/phi"):
        check_stop(1, on, ["phi"])
    check_stop(0, "anything", [])
    for on, teachers in (("kd", []), ("kd/phy", ["phi"]), ("loss", ["phi"])):
        with pytest.raises(InputError, match=r"stop\.on="):
            check_stop(1, on, teachers)
