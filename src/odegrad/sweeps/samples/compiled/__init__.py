"""The sweeps of a batch in compiled chunks: what `odegrad.sweeps.samples` does round by round.

A search attempts a chunk of steps of the whole batch in one loop. Between chunks Python writes down what
each sample accepted, step by step of its own, reads the samples at their times inside of these steps, and
looks at those that are stuck. Known rounds, and their transposes, are chunks as those of any solve, with
times and steps of shape [rows, B].
"""

from odegrad.sweeps.samples.compiled.backward import pull as pull
from odegrad.sweeps.samples.compiled.forward import ahead as ahead
