"""Steps as compiled programs: capturing f, tracing a scheme's step and its transpose, loops over them."""

from odegrad.compiled.blocks import Blocks
from odegrad.compiled.clock import Ticks, inside_of
from odegrad.compiled.controller import March, constants
from odegrad.compiled.deferred import Rows
from odegrad.compiled.inductor import using_backend
from odegrad.compiled.inside import Inside, SampleInside
from odegrad.compiled.prepare import Prepared, prepare
from odegrad.compiled.programs import Programs, Transposed
from odegrad.compiled.pullback import Pullback
from odegrad.compiled.reading import Reading
from odegrad.compiled.samples import SamplePrograms
from odegrad.compiled.shapes import CHUNK_BYTES
from odegrad.compiled.tracing import NotCompilable, device_of

__all__ = [
    "CHUNK_BYTES",
    "Blocks",
    "Inside",
    "March",
    "NotCompilable",
    "Prepared",
    "Programs",
    "Pullback",
    "Reading",
    "Rows",
    "SampleInside",
    "SamplePrograms",
    "Ticks",
    "Transposed",
    "constants",
    "device_of",
    "inside_of",
    "prepare",
    "using_backend",
]
