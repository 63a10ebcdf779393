"""The two sweeps in compiled chunks; what `sweeps.forward` and `sweeps.backward` do step by step.

Python does what is left between chunks: it hands buffers to the programs, keeps the states that the
schedule asks for, adds the cotangents of the outputs, and looks at a step-size controller that is stuck.
"""

from odegrad.sweeps.compiled.backward import backward as backward
from odegrad.sweeps.compiled.forward import forward as forward
