"""The sweeps of a batch in which every sample has steps of its own (`odegrad.solve` with ``batch``).

* `search`: adaptive steps, without gradients. Each attempt is one step of the whole batch, which every
  sample accepts or rejects for itself. What comes out is the accepted steps of each: a `SampleGrid`.
* `forward`: the rounds of such a grid. There are no rejected steps in it, and it is known, so that it
  serves all schedules, plain autograd, and replays.
* `backward`: the transposes of the rounds, from the last to the first.

If a schedule keeps the states (or stages) of all steps, the search leaves them behind in the order of the
grid, and there is no second forward sweep.
"""

from odegrad.sweeps.samples.backward import pull
from odegrad.sweeps.samples.batch import SampleMonitor, SampleRun, SampleStats
from odegrad.sweeps.samples.forward import ahead, prepare, taped
from odegrad.sweeps.samples.record import record_bytes
from odegrad.sweeps.samples.rounds import replayed
from odegrad.sweeps.samples.trial import trial

__all__ = [
    "SampleMonitor",
    "SampleRun",
    "SampleStats",
    "ahead",
    "prepare",
    "pull",
    "record_bytes",
    "replayed",
    "taped",
    "trial",
]
