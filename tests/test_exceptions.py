"""The hierarchy of errors: roots, builtins, what they keep."""

import pickle

import pytest

from statsfs import exceptions
from statsfs.exceptions import (
    BaseMismatchError,
    DuplicateNameError,
    ExhaustedError,
    FormatError,
    InvalidNameError,
    KvmError,
    MountError,
    QmpError,
    ReadOnlyValueError,
    ReleasedError,
    SampleError,
    SegmentError,
    StatsfsError,
    TreeError,
    UnavailableError,
    UnknownValueError,
)

BUILTINS: list[tuple[type[StatsfsError], type[Exception]]] = [
    (TreeError, ValueError),
    (DuplicateNameError, ValueError),
    (InvalidNameError, ValueError),
    (FormatError, ValueError),
    (BaseMismatchError, TypeError),
    (UnknownValueError, KeyError),
    (ReleasedError, ReferenceError),
    (ReadOnlyValueError, PermissionError),
    (UnavailableError, OSError),
    (MountError, OSError),
    (SegmentError, OSError),
    (SampleError, OSError),
    (ExhaustedError, OverflowError),
    (QmpError, OSError),
    (KvmError, OSError),
]


@pytest.mark.parametrize(("error", "builtin"), BUILTINS)
def test_each_error_is_the_builtin_that_fits(
    error: type[StatsfsError], builtin: type[Exception]
) -> None:
    """A program may catch the root or the builtin: docs/architecture.md, "Errors"."""
    assert issubclass(error, StatsfsError)
    assert issubclass(error, builtin)


def test_the_family_is_complete() -> None:
    """Every error of the module is in the table above, or is the root."""
    public = {getattr(exceptions, name) for name in exceptions.__all__}
    assert public == {error for error, _ in BUILTINS} | {StatsfsError}


@pytest.mark.parametrize("error", [error for error, _ in BUILTINS])
def test_an_error_shows_its_message_and_keeps_its_offender(error: type[StatsfsError]) -> None:
    """KeyError does not quote the message, OSError does not look for a number in it."""
    offender = object()
    raised = error("a/b: 'x' is wrong", offender)
    assert str(raised) == raised.message == "a/b: 'x' is wrong"
    assert raised.offender is offender
    assert error("alone").offender is None


def test_a_mount_error_keeps_the_systems_number() -> None:
    """The errno is there where the system gave one, and None elsewhere."""
    assert MountError("no", "/mnt", 13).errno == 13
    assert MountError("no", "/mnt").errno is None


def test_errors_cross_processes() -> None:
    """A pool of processes may hand an error back to its parent."""
    error = pickle.loads(pickle.dumps(UnknownValueError("a: no value 'x'", "x")))
    assert type(error) is UnknownValueError
    assert str(error) == "a: no value 'x'"
    assert error.offender == "x"
