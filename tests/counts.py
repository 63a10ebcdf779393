"""Runs what tries to break the library, counts it, and writes the numbers into README.md: `make counts`.

python tests/counts.py [--jobs N]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mutants
import test_bad_inputs
import test_faults

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- make counts -->\n).*?(?=<!-- end -->)", re.DOTALL)


class Counts(NamedTuple):
    """How much was tried.

    Attributes:
        inputs: Bad and unusual inputs, each with its error, warning or right answer.
        faults: Exceptions and interrupts injected.
        bugs: Bugs planted, all of which the tests caught.
    """

    inputs: int
    faults: int
    bugs: int

    def text(self) -> str:
        """What README.md says of them."""
        return (
            f"- **{self.inputs} bad or unusual inputs**: each raises an error that names the problem, "
            "what was received and the fix, or warns,\n  or is right; also under `python -O`.\n"
            f"- **{self.faults} faults**: an exception and a Ctrl-C at every call of f and of callbacks, "
            "in both sweeps. Nothing is left of them, and\n  the next solve has the same bits.\n"
            f"- **{self.bugs} of {self.bugs} planted bugs** in schemes, schedules, sweeps, fields and "
            "modes are caught by the tests.\n"
        )


def written() -> str:
    """What README.md says now."""
    found = BLOCK.search(README.read_text(encoding="utf-8"))
    assert found is not None, "README.md has lost the place of the counts"
    return found.group()


def main() -> int:
    """Runs all; the exit status is 1 if a test fails or a planted bug survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    tests = ["tests/test_bad_inputs.py", "tests/test_faults.py"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(jobs), *tests], cwd=ROOT, check=True
    )
    if mutants.hunt(mutants.MUTANTS, jobs, trust=False):
        return 1
    counts = Counts(len(test_bad_inputs.ROWS), test_faults.count(), len(mutants.MUTANTS))
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda _: counts.text(), text), encoding="utf-8")
    print(counts.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
