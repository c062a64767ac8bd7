"""Baselines of bases that others overwrite."""

from statsfs.model.arrays import intern_array
from statsfs.model.baselines import Baselined
from statsfs.model.values import Value

VALUES = (Value("a"), Value("b"))


def test_a_baseline_that_was_replaced_stays() -> None:
    """A reader that sees an old number below an old baseline drops that one, not its successor."""
    binder = intern_array(VALUES).binder
    base = {"a": 5, "b": 7}
    reader, bound = binder.bind(base)
    subtracting, held = binder.subtract_baselines(reader), Baselined(bound)
    assert binder.subtract_baselines(reader) is subtracting
    subtracting.clear(held, 0)
    base["a"] = 2
    sampled = [[subtracting.sample(held)]]
    subtracting.clear(held, 0)
    assert subtracting.decode(sampled) == [(2, 7)]
    base.update(a=3, b=8)
    assert subtracting.decode([[subtracting.sample(held)]]) == [(1, 8)]


def test_a_sample_outlives_its_base() -> None:
    """What was sampled is decoded when nothing else is left."""
    binder = intern_array(VALUES).binder
    reader, bound = binder.bind({"a": 5, "b": 7})
    subtracting, held = binder.subtract_baselines(reader), Baselined(bound)
    held.note(0, 6)
    sampled = [[subtracting.sample(held)]]
    del held
    assert subtracting.decode(sampled) == [(5, 7)]
