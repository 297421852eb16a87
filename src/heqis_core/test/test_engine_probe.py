# SPDX-License-Identifier: Apache-2.0
"""The ordered probe: what is chosen, and the reason of each engine that is passed over."""

from __future__ import annotations

import pytest

from heqis_core.engine_probe import Candidate, Ready, probe
from heqis_core.errors import ConfigError, EngineError
from heqis_core.io.ort_engine import open_engine


def failing(kind: str, error: Exception) -> Candidate:
    def prepare() -> Ready:
        raise error

    return Candidate(kind, prepare)


def test_the_first_that_works_is_chosen_and_those_before_say_why_not() -> None:
    works = Candidate('onnxruntime', lambda: Ready(open_engine, {}))
    never = failing('never asked', AssertionError('was asked'))
    order = [
        failing('a', EngineError('no driver')),
        failing('b', ConfigError('no file')),
        works,
        never,
    ]
    choice = probe(order)
    assert (choice.kind, choice.make_engine) == ('onnxruntime', open_engine)
    assert choice.passed_over == (('a', 'no driver'), ('b', 'no file'))
    assert choice.text() == 'onnxruntime; a passed over: no driver; b passed over: no file'


def test_when_nothing_works_the_error_has_every_reason() -> None:
    with pytest.raises(EngineError, match=r'a: no driver; b: no device'):
        probe([failing('a', EngineError('no driver')), failing('b', EngineError('no device'))])


def test_an_error_that_is_no_reason_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        probe([failing('a', ZeroDivisionError())])
