"""Fuzzing in short (`make fuzz` runs it at length), and that the harness finds what breaks a law."""

import pickle
import re

import pytest
from fuzz.files import _changed, _other_digit
from fuzz.harness import Target, judge, nothing_executed, run
from fuzz.targets import TARGETS
from hypothesis import strategies as st

import multilevel_sde as mls

SHORT = {"command line": 4, "solve": 25, "sample": 25}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bad_input_is_refused_by_name(target):
    outcomes = run(target, SHORT.get(target.name, 60))
    assert outcomes.total() - outcomes["accepted"] > 0


def attack(error=None, result="accepted"):
    def function(value):
        if error is not None:
            raise error
        return result

    return Target("toy", st.integers(), function, 1.0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("math domain error"), "no sentence that names its argument"),
        (TypeError("'>' not supported between instances of 'str' and 'int'"), "no sentence"),
        (ValueError('"x" is wrong,\nand more'), "no sentence"),
        (ValueError('"x" ' + 900 * "-"), "no sentence"),
        (AssertionError("NaN in a solution"), "NaN in a solution"),
    ],
)
def test_what_breaks_a_law_is_found(error, message):
    with pytest.raises(AssertionError, match=message):
        run(attack(error), 3)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), ZeroDivisionError("x"), OverflowError("x")])
def test_an_exception_that_is_not_documented_is_found(error):
    with pytest.raises(type(error)):
        run(attack(error), 3)


def test_what_keeps_the_laws_is_counted():
    assert judge(attack(ValueError('"x" must be positive, got -1')), 0) == "ValueError"
    assert judge(attack(mls.NonFiniteError(0, 0.0, None, [0])), 0) == "NonFiniteError"
    assert run(attack(), 3) == {"accepted": 3}
    assert run(attack(), 5, seed=1) == {"accepted": 5}


class Command:
    def __reduce__(self):
        return print, ("unpickled",)


def test_what_is_executed_while_a_file_is_read_is_found(capsys):
    content = pickle.dumps(Command())
    with pytest.raises(AssertionError, match=r"led to pickle\.find_class"), nothing_executed():
        pickle.loads(content)
    with pytest.raises(AssertionError, match="led to compile"), nothing_executed():
        compile("1", "here", "eval")
    pickle.loads(content)
    assert capsys.readouterr().out == "unpickled\n"


def test_mutations_are_what_they_say():
    assert _changed(b"abc", "flip", 1, 0, 1) == b"acc"
    assert _changed(b"abc", "set", 2, 120, 1) == b"abx"
    assert _changed(b"abc", "cut", 1, 0, 1) == b"a"
    assert _changed(b"abc", "insert", 1, 120, 2) == b"axxbc"
    assert _changed(b"abc", "repeat", 1, 0, 2) == b"abcbc"
    assert _changed(b"abc", "drop", 0, 0, 2) == b"c"
    assert re.fullmatch(rb"x[0-35-9]y5", _other_digit(b"x4y5", 0, 200))
