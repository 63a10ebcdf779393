"""Time and memory of gradients on small workloads: the work of `odegrad bench`.

The benchmarks of the repository, which compare with other libraries, build on it.
"""

from odegrad.bench.choice import BenchError, chosen
from odegrad.bench.engines import (
    COMPILED,
    COMPILED_GRAPH,
    EACH,
    EACH_COMPILED,
    ENGINES,
    GRAPH,
    STATES,
    TAPE,
    Engine,
)
from odegrad.bench.machine import Machine, describe_machine
from odegrad.bench.measure import Result, Results, measure
from odegrad.bench.odeint import TORCHDIFFEQ, TORCHDIFFEQ_ADJOINT
from odegrad.bench.report import digits, print_results
from odegrad.bench.systems import Counts, Prepared, System, differentiate, last
from odegrad.bench.timing import SHORTEST_SAMPLE, Timing, ratio, time_in_turn
from odegrad.bench.workloads import WORKLOADS, Problem, Workload

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (*ENGINES, EACH, EACH_COMPILED, TORCHDIFFEQ, TORCHDIFFEQ_ADJOINT)
}

__all__ = [
    "COMPILED",
    "COMPILED_GRAPH",
    "EACH",
    "EACH_COMPILED",
    "ENGINES",
    "GRAPH",
    "SHORTEST_SAMPLE",
    "STATES",
    "SYSTEMS",
    "TAPE",
    "TORCHDIFFEQ",
    "TORCHDIFFEQ_ADJOINT",
    "WORKLOADS",
    "BenchError",
    "Counts",
    "Engine",
    "Machine",
    "Prepared",
    "Problem",
    "Result",
    "Results",
    "System",
    "Timing",
    "Workload",
    "chosen",
    "describe_machine",
    "differentiate",
    "digits",
    "last",
    "measure",
    "print_results",
    "ratio",
    "time_in_turn",
]
