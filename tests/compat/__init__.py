"""Tests of `odegrad.compat.torchdiffeq`, none of which needs torchdiffeq."""
