"""Stand-ins for other libraries: the same calls, with exact gradients.

`odegrad.compat.torchdiffeq` is the only place of odegrad in which strings select algorithms.
"""
