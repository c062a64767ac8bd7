"""What trips people: each error is one line that names the argument, with nothing below it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import BaseMismatchError, InvalidNameError, UnknownValueError
from statsfs.formats import prometheus
from statsfs.model.fields import counter, log_hist, u64
from statsfs.model.histograms import Histogram
from statsfs.model.names import safe_name
from statsfs.model.stats import Stats
from statsfs.model.values import Value
from statsfs.tree.families import Family
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source


class S(Stats):
    n: int = u64()
    h: Histogram = log_hist(4)


class Broken:
    """Its property says why."""

    h = [0] * 4

    @property
    def n(self) -> int:
        raise OSError("unplugged")


def add(values: Any, base: Any) -> Callable[[], object]:
    """Return what adds values to a new source."""
    return lambda: Source("app").add_values(values, base)


def make(*args: Any, **arguments: Any) -> Callable[[], object]:
    """Return what makes a source."""
    return lambda: Source(*args, **arguments)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "the base first": (add(S(), S), TypeError, r"S\(\) is a base, not an array: the class, S"),
    "no values": (add(5, S()), TypeError, "values are a Stats class or Values, not int"),
    "the class as base": (add(S, S), BaseMismatchError, "app: the class S holds no integer for"),
    "a text": (add([*S._stats_values], {"n": "5"}), BaseMismatchError, "app: .* value 'n'"),
    "nothing": (add(S, SimpleNamespace()), BaseMismatchError, "has no value 'n'"),
    "a field that is not called": (
        lambda: type("X", (Stats,), {"n": counter}), TypeError, r"X.n .*: write n = counter\(\)",
    ),
    "a fraction": (lambda: S().h.observe(0.25), TypeError, "observe takes an integer"),  # type: ignore[arg-type]
    "a name without its arguments": (make("vm%d"), InvalidNameError, "'vm%d' lacks the arguments"),
    "a name of C": (make("vm%lu"), InvalidNameError, "'vm%lu' lacks the arguments"),
    "a name in hexadecimal": (make("%x-1"), InvalidNameError, "'%x-1' lacks the arguments"),
    "a name with a width": (make("vm%.3f"), InvalidNameError, "'vm%.3f' lacks the arguments"),
    "a name by key": (make("vm%(n)d"), InvalidNameError, r"'vm%\(n\)d' lacks the arguments"),
    "a text as field": (
        lambda: type("X", (Stats,), {"n": None}), TypeError, r"X.n = None .*: write n = u64\(\)",
    ),
    "a type as field": (
        lambda: type("X", (Stats,), {"n": int}), TypeError, "X.n = <class 'int'> declares no value",
    ),
    "a Value as field": (
        lambda: type("X", (Stats,), {"n": Value("n")}), TypeError, "X.n = Value.* declares no val",
    ),
    "a list of fields": (
        lambda: type("X", (Stats,), {"n": [u64()]}), TypeError, "X.n = .* declares no value",
    ),
    "a dict of fields": (
        lambda: type("X", (Stats,), {"n": {"a": u64()}}), TypeError, "X.n = .* declares no value",
    ),
    "no row": (
        lambda: Source("a", retain=True).restore(S, 5), TypeError, "row is not a sequence",  # type: ignore[arg-type]
    ),
    "a number as a name": (lambda: safe_name(5), TypeError, "text is not a str: 5"),  # type: ignore[arg-type]
    "nothing as a name": (lambda: safe_name(None), TypeError, "text is not a str: None"),  # type: ignore[arg-type]
    "bytes as a name": (lambda: safe_name(b"a"), TypeError, "text is not a str: b'a'"),  # type: ignore[arg-type]
    "no source": (lambda: Source("a").add_subordinate(S()), TypeError, "source is not a Source"),  # type: ignore[arg-type]
    "a path of a number": (lambda: Source("a").find(5), TypeError, "a path is a str, not int: 5"),  # type: ignore[arg-type]
    "a path of bytes": (lambda: Registry().find(b"a"), TypeError, "a path is a str, not bytes"),  # type: ignore[arg-type]
    "too few labels": (lambda: Family(Source("a"), S, "x")(), TypeError, "0 values for 1 label"),
    "a status as a label": (
        lambda: Family(Source("a"), S, "x")(200), TypeError, "label 'x' must be a str, not int",  # type: ignore[arg-type]
    ),
    "too many arguments": (make("vm%d", 1, 2), InvalidNameError, "not all arguments"),
    "no name": (make(5), InvalidNameError, "a source's name must be a str, not int"),
    "no refresh": (make("x", refresh=5), TypeError, "refresh is not callable: 5"),
    "no age": (make("x", refresh=print, max_age="1"), TypeError, "max_age is not a number"),
    "an age below 0": (make("x", refresh=print, max_age=-1), ValueError, "max_age .*: -1"),
    "no function": (make("x", cleared="y"), TypeError, "cleared is not callable: 'y'"),
    "no rmdir": (make("x", rmdir=True), TypeError, "rmdir is not callable: True"),
    "no label's value": (make("x", label="y", label_value=5), TypeError, "label_value is"),
    "no info": (make("x", info="1.2"), TypeError, "info is not a mapping: '1.2'"),
    "a number as info": (make("x", info={"v": 1.2}), TypeError, "info is not a str: 'v': 1.2"),
    "an info without a name": (make("x", info={"": "x"}), InvalidNameError, "a name in info"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_trips_people(what: str) -> None:
    """One line, and no error within it."""
    do, error, words = WRONG[what]
    with pytest.raises(error, match=words) as raised:
        do()
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_what_a_base_says_itself_is_kept() -> None:
    """An error of its own is the cause of ours."""
    with pytest.raises(BaseMismatchError, match="holds no integer for value 'n'") as raised:
        Source("app").add_values(S, Broken())
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/x", "no value '/x': a path is names joined by \"/\""),
        ("", "no value '': a path is names joined by \"/\""),
        ("/app/n", "no value '/app/n': a path"),
        ("app//n", "no value 'app//n': a path"),
        ("n", "no value 'n': a path"),
        ("app", "no value 'app': it is a source"),
        ("app/below", "no value 'app/below': it is a source"),
        ("app/x", "app: no value 'x'"),
        ("x/n", "no source 'x'"),
        ("app/x/n", "no source 'app/x'"),
    ],
)
def test_paths_of_no_value(registry: Registry, path: str, words: str) -> None:
    """What is wrong is said in one line; a hidden source does not hide a value."""
    app, below = Source("app"), Source("below")
    app.add_values(S, S(n=5))
    registry.register(app)
    app.add_subordinate(below)
    app.add_subordinate(Source("n", hidden=True))
    assert registry["app/n"] == 5
    with pytest.raises(UnknownValueError) as raised:
        registry[path]
    assert raised.value.args[0].startswith(words)
    assert raised.value.offender in (path, path.rpartition("/")[2])
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("name", ["100%", "%2Fdeep", "a%d1", "%D0%B0", "%%", "5% a", "%05d"])
def test_names_with_percent_signs(name: str) -> None:
    """Are names; of those that ask for an argument a program has forgotten it."""
    assert Source(name).name == Source("%s", name).name == name
    assert Source("%s", "vm%d").name == "vm%d"


def test_the_value_of_a_label(registry: Registry) -> None:
    """Is any text; what a terminal or a parser may stumble over is shown as `ascii` does."""
    for number, text in enumerate(["/item/{id}", "", 'a "quote"\n', "\0\udc80"]):
        source = Source("app%d", number)
        registry.register(source)
        with Source("x", label="endpoint", label_value=text, info={"version": "1\n"}) as below:
            source.add_subordinate(below)
            below.add_values(S, S())
            assert below.info == {"version": r"1\n"}
    lines = prometheus.render(registry.snapshot()).decode().splitlines()
    assert [line for line in lines if "_n_total{" in line] == [
        'app0_n_total{endpoint="/item/{id}"} 0',
        'app1_n_total{endpoint=""} 0',
        r'app2_n_total{endpoint="a \"quote\"\\n"} 0',
        r'app3_n_total{endpoint="\\x00\\udc80"} 0',
    ]


@pytest.mark.parametrize(
    "text",
    ["", "/", "\x05d", "%", "%d", "%s" * 99, "\0" * 200, "/" * 84 + "ab", "é/" * 70, "%(n)d"],
)
@pytest.mark.parametrize("cut", range(4))
def test_a_safe_name_is_no_format(text: str, cut: int) -> None:
    """Whatever a client sends, a source can be called as `safe_name` says."""
    name = safe_name(text + "x" * cut)
    assert Source(name).name == name
