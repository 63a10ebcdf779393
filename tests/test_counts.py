"""README.md says how much was tried: as many as there are."""

from __future__ import annotations

import re

import pytest

import counts
import mutants
import test_bad_inputs
import test_faults


def stated() -> counts.Counts:
    numbers = re.findall(r"\*\*(\d+)", counts.written())
    return counts.Counts(*map(int, numbers))


def test_readme_is_as_generated() -> None:
    assert counts.written() == stated().text()


def test_inputs_and_bugs() -> None:
    assert stated().inputs == len(test_bad_inputs.ROWS)
    assert stated().bugs == len(mutants.MUTANTS)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_every_planted_bug_still_applies(mutant: mutants.Mutant) -> None:
    assert mutants.patched(mutant)


@pytest.mark.exhaustive
def test_injected_faults() -> None:
    assert stated().faults == test_faults.count()
