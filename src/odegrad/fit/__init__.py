"""Fitting a neural ODE, or the Lotka–Volterra equations, to a time series: the work of `odegrad fit`.

A saved model is read back with

::

    import odegrad.fit

    model = odegrad.fit.load("odegrad-fit-DATA/model.pt")
    values = model.predict([1921.0, 1922.0])  # shape [2, number of states], units of the data
"""

from odegrad.fit.config import Config
from odegrad.fit.data import Series, read_series
from odegrad.fit.errors import DataError, OptionError
from odegrad.fit.example import hare_lynx
from odegrad.fit.fitted import Fitted, load
from odegrad.fit.job import Job, Result, prepare, run

__all__ = [
    "Config",
    "DataError",
    "Fitted",
    "Job",
    "OptionError",
    "Result",
    "Series",
    "hare_lynx",
    "load",
    "prepare",
    "read_series",
    "run",
]
