"""Planted bugs: each has to be caught by the tests. `make mutants` runs them all.

A mutant is a textual patch of one file of src/odegrad. It is applied to a private copy of src, in a
temporary directory that comes first on the path, and the tests named with it are run until one fails. A
mutant that none of them notices is a survivor: then a test is missing. A patch that no longer applies is
an error, too.

    python tests/mutants.py [--jobs N] [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "odegrad"


class Mutant(NamedTuple):
    """A bug: in `file`, `new` stands where `old` did; `tests` are options of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # Samples that are read, and that step onto breakpoints.
    Mutant(
        "the cotangents of times that samples are read at are lost",
        "sweeps/samples/costate.py",
        "self._grad_inside[b, j] = g[b]",
        "self._grad_inside[b, j] = 0.0",
        "tests/test_samples_dense.py",
    ),
    Mutant(
        "all samples of a batch have the breakpoints of the first",
        "batchtimes.py",
        "numbers[row] = len(self._ends)",
        "numbers[row] = 0",
        "tests/test_samples_dense.py",
    ),
    Mutant(
        "a loss at a label of a batch is transposed at the label before",
        "gradients/losses.py",
        "loss.vjp(j, tuple(y[j] for y in x[:n])",
        "loss.vjp(max(j - 1, 0), tuple(y[j] for y in x[:n])",
        "tests/test_samples_dense.py",
    ),
    # Schemes and their transposes.
    Mutant(
        "a stage's cotangent does not reach the next but one",
        "schemes/explicit.py",
        "for j in range(i + 1, last)",
        "for j in range(i + 1, min(i + 2, last))",
        "tests/test_exactness.py",
    ),
    Mutant(
        "the first-same-as-last cotangent is lost",
        "schemes/explicit.py",
        "outside[-1] = add(outside[-1], grad_carry)",
        "outside[-1] = outside[-1]",
        "tests/test_exactness.py",
    ),
    Mutant(
        "the cotangent of dt forgets where in the step f was evaluated",
        "schemes/explicit.py",
        "grad_dt + tab.c[i] * tau",
        "grad_dt + tau",
        "tests/test_exactness.py",
    ),
    Mutant(
        "stages are evaluated at the start of the step",
        "schemes/explicit.py",
        "time = t + dt * tab.c[i]",
        "time = t + 0.0 * dt * tab.c[i]",
        "tests/test_properties.py",
    ),
    Mutant(
        "asynchronous leapfrog evaluates at the end of the step",
        "schemes/alf.py",
        "u = field(t + dt * 0.5, half, p)\n        v = self._reflected",
        "u = field(t + dt, half, p)\n        v = self._reflected",
        "tests/test_reversible.py tests/test_scheme_laws.py",
    ),
    Mutant(
        "reversible Heun: the carry's cotangent has the wrong sign",
        "schemes/reversible_heun.py",
        "(*scale(-1.0, rho), *grad_slope)",
        "(*scale(1.0, rho), *grad_slope)",
        "tests/test_scheme_laws.py",
    ),
    Mutant(
        "a scheme that starts anew keeps times at the jump",
        "schemes/restarted.py",
        "return min(max(t, cast",
        "return t or min(max(t, cast",
        "tests/test_breakpoints.py",
    ),
    Mutant(
        "steps per sample: a product goes to the stage before",
        "schemes/columns.py",
        "self._terms[i][leaf].append(term)",
        "self._terms[max(i - 1, j + 1)][leaf].append(term)",
        "tests/test_samples.py",
    ),
    Mutant(
        "steps per sample: stages are evaluated at times of another sample",
        "schemes/explicit.py",
        "slopes.append(field(times[i], stage, p))",
        "slopes.append(field(times[i].flip(0), stage, p))",
        "tests/test_samples.py",
    ),
    Mutant(
        "steps per sample: an error estimate of one's own is not asked for",
        "schemes/explicit.py",
        "error = sums.alone(len(rows) - 1)",
        "error = sums.alone(len(rows) - 2)",
        "tests/test_samples.py",
    ),
    Mutant(
        "steps per sample: after a rejection a step may grow",
        "sweeps/samples/search.py",
        "self._rejected = reject | (self._rejected & stays)",
        "self._rejected = self._rejected & stays",
        "tests/test_samples.py",
    ),
    Mutant(
        "a scheme's own step is not what a gradient differentiates",
        "schemes/explicit.py",
        'if "step" in cls.__dict__ and "advance" not in cls.__dict__:',
        "if False:",
        "tests/test_samples.py",
    ),
    # Checkpoints.
    Mutant(
        "binomial checkpoints: the split is off by one",
        "checkpoints/reversal.py",
        "return min(most, max(least, n - behind))",
        "return min(most, max(least, n - behind)) - (n > 9)",
        "tests/test_schedules.py",
    ),
    Mutant(
        "binomial checkpoints: a state is dropped a step too early",
        "checkpoints/reversal.py",
        "if stack[-1] == stop - 1:",
        "if stack[-1] >= stop - 2:",
        "tests/test_schedules.py",
    ),
    Mutant(
        "online checkpoints keep one more state than allowed",
        "checkpoints/online.py",
        "if len(kept) + len(dispensable) < slots or dispensable:",
        "if len(kept) + len(dispensable) <= slots or dispensable:",
        "tests/test_schedules.py",
    ),
    Mutant(
        "blocks: the last block is taken again though it is on the tape",
        "checkpoints/blockwise.py",
        "taped = False\n            yield action",
        "taped = True\n            yield action",
        "tests/test_schedules.py",
    ),
    Mutant(
        "tiers: states go to the slowest first",
        "checkpoints/tiered.py",
        "key=lambda level: -busy[level]",
        "key=lambda level: busy[level]",
        "tests/test_schedules.py tests/test_storage.py",
    ),
    Mutant(
        "anchors are placed a step late",
        "checkpoints/rewind.py",
        "else j % self.anchor_every == 0",
        "else (j - 1) % self.anchor_every == 0",
        "tests/test_reversible.py tests/test_schedules.py",
    ),
    # Sweeps.
    Mutant(
        "the cotangent of the first output is lost",
        "sweeps/costate.py",
        "        self._inject(0, self._y0)\n",
        "",
        "tests/test_exactness.py",
    ),
    Mutant(
        "the transpose of the scheme's beginning is left out",
        "sweeps/costate.py",
        "tuple(a + b for a, b in zip(self._grad_y, grads.y, strict=True))\n            self._grad_p",
        "self._grad_y\n            self._grad_p",
        "tests/test_exactness.py",
    ),
    Mutant(
        "random numbers are not replayed for a transposed step",
        "sweeps/costate.py",
        "        if snapshot is not None:\n            snapshot.restore()",
        "",
        "tests/test_traps.py",
    ),
    Mutant(
        "the backward sweep leaves generators and buffers where it was",
        "sweeps/transposing.py",
        "            here.restore()",
        "            pass",
        "tests/test_faults.py",
    ),
    Mutant(
        "f is handed the caller's own state",
        "sweeps/forward.py",
        "y = tuple(leaf.clone() for leaf in y)  # the caller's",
        "y = tuple(y)  # the caller's",
        "tests/test_solve.py",
    ),
    Mutant(
        "a rejected attempt leaves its mark on generators and buffers",
        "sweeps/adaptive.py",
        "if snapshot is not None:\n                    snapshot.restore()\n                run",
        "run",
        "tests/test_solve.py",
    ),
    Mutant(
        "a step cut short by a landing shortens the next",
        "sweeps/adaptive.py",
        "cut = lands and left < h and not history.rejected",
        "cut = False",
        "tests/test_solve.py",
    ),
    Mutant(
        "graphs: a stretch begins at the wrong landing",
        "sweeps/graphs.py",
        "leaves = self.open(stretch.outputs, self._stop)",
        "leaves = self.open(stretch.outputs, stretch.first)",
        "tests/test_kept_graphs.py",
    ),
    Mutant(
        "a stored row is handed out, not a copy of it",
        "sweeps/slab.py",
        "column[row].clone()",
        "column[row]",
        "tests/test_traps.py",
    ),
    Mutant(
        "a slab that serves again gives its places away",
        "sweeps/slab.py",
        "if place[0] >= self._frozen:",
        "if True:",
        "tests/test_exactness.py tests/test_traps.py tests/test_faults.py",
    ),
    Mutant(
        "a parameter's cotangents of two steps share memory",
        "sweeps/cotangents.py",
        "self._sums[i] = own.clone() if own is grad else own",
        "self._sums[i] = own",
        "tests/test_loss_at.py",
    ),
    Mutant(
        "the loss at a label is evaluated at the next label's number",
        "sweeps/labels.py",
        "value = self._loss(label, y, self._p)",
        "value = self._loss(label + (label > 2), y, self._p)",
        "tests/test_properties.py tests/test_loss_at.py",
    ),
    # The grid.
    Mutant(
        "the cotangent of a step's end joins its start",
        "grid.py",
        "weights = (1.0 - start, -width), (start, width)",
        "weights = (1.0 - start, -width), (0.0, width)",
        "tests/test_grid.py",
    ),
    # The field.
    Mutant(
        "a state changed in place is not noticed",
        "field.py",
        "if [version(leaf) for leaf in leaves] != versions:",
        "if False:",
        "tests/test_bad_inputs.py",
    ),
    Mutant(
        "a result buffer that is used again is not noticed",
        "field.py",
        "if [version(old) for old, _ in self._returned] != [v for _, v in self._returned]:",
        "if False:",
        "tests/test_bad_inputs.py",
    ),
    Mutant(
        "autocast is not replayed",
        "field.py",
        "        with torch.autocast(kind, dtype, enabled):\n",
        "        with torch.autocast(kind, dtype, False):\n",
        "tests/test_mixed_precision.py",
    ),
    Mutant(
        "a captured constant may change between the sweeps",
        "field.py",
        "            if version(c.tensor) != v:",
        "            if False:",
        "tests/test_bad_inputs.py",
    ),
    Mutant(
        "a tensor with hooks is differentiated as it is",
        "capture.py",
        " and not _hooked(x)",
        "",
        "tests/test_captured.py",
    ),
    Mutant(
        "a shape that only broadcasts is accepted",
        "outputs.py",
        "if slope.shape != leaf.shape:",
        "if slope.ndim != leaf.ndim:",
        "tests/test_bad_inputs.py",
    ),
    Mutant(
        "buffers are not replayed",
        "replay.py",
        "                buffer.data.copy_(value)",
        "                pass",
        "tests/test_traps.py",
    ),
    Mutant(
        "the training mode of the solve is left in the module",
        "capture.py",
        'stack.callback(setattr, module, "training", not mode)',
        "pass",
        "tests/test_captured.py",
    ),
    Mutant(
        "defaults of arguments are not searched for tensors",
        "scan.py",
        "for part in [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]:",
        "for part in []:",
        "tests/test_capture.py",
    ),
    Mutant(
        "a lost gradient is not noticed",
        "reach.py",
        "if leaf is not None and id(leaf) not in allowed and not hasattr(leaf, _MARK):",
        "if False:",
        "tests/test_bad_inputs.py",
    ),
    # The node.
    Mutant(
        "an interrupted pass that used what was kept is not told",
        "gradients/node.py",
        "call.spent = not retain",
        "call.spent = False",
        "tests/test_kept_graphs.py",
    ),
    Mutant(
        "unused parameters get no gradient",
        "gradients/rules.py",
        "(torch.zeros_like(x) if x.requires_grad else None) if g is None else g.to(x.dtype)",
        "None if g is None else g.to(x.dtype)",
        "tests/test_solve.py",
    ),
    # Storage.
    Mutant(
        "a damaged state is taken for sound",
        "storage/layout.py",
        "return None if crc == _crc(parts) else",
        "return None if crc or not crc else",
        "tests/test_storage.py -k damage",
    ),
    Mutant(
        "an error while writing is forgotten",
        "storage/statefile.py",
        "if write.error is not None and write.place() is not None:",
        "if False:",
        "tests/test_bad_inputs.py -k disk",
    ),
    Mutant(
        "records lie one byte too near",
        "storage/records.py",
        "self.file.write(buffer.sealed(i), record * self.layout.nbytes)",
        "self.file.write(buffer.sealed(i), max(0, record * self.layout.nbytes - 1))",
        "tests/test_storage.py -k dict",
    ),
    # Step sizes.
    Mutant(
        "the step after a rejection may grow",
        "stepsize/pid.py",
        "largest = 1.0 if history.rejected else self.factor_max",
        "largest = self.factor_max",
        "tests/test_stepsize.py",
    ),
    Mutant(
        "the integral gain is divided by the order and one",
        "stepsize/pid.py",
        "e ** (-(self.p + self.i + self.d) / order)",
        "e ** (-(self.p + self.i + self.d) / (order + 1))",
        "tests/test_stepsize.py",
    ),
    Mutant(
        "NaN is accepted as an error estimate",
        "stepsize/pid.py",
        "if not math.isfinite(ratio):",
        "if math.isinf(ratio):",
        "tests/test_bad_inputs.py tests/test_stepsize.py",
    ),
    Mutant(
        "the error norm is taken in half precision",
        "stepsize/pid.py",
        "zip(map(wide, x), map(wide, y0), map(wide, y1), strict=True)",
        "zip(x, y0, y1, strict=True)",
        "tests/test_mixed_precision.py",
    ),
    Mutant(
        "rounded times take a step more",
        "stepsize/fixed.py",
        "slack = 4.0 * eps",
        "slack = 0.0 * eps",
        "tests/test_traps.py tests/test_stepsize.py",
    ),
    Mutant(
        "NaN in the initial state is let through",
        "inputs.py",
        "if check_finite and not bool(torch.isfinite(leaf).all()):",
        "if check_finite and bool(torch.isinf(leaf).any()):",
        "tests/test_bad_inputs.py",
    ),
    # Breakpoints.
    Mutant(
        "breakpoints at which f is continuous are taken for jumps",
        "breakpoints.py",
        "jumps = jumps or (bool(more) and not continuous)",
        "jumps = jumps or bool(more)",
        "tests/test_breakpoints.py tests/test_controls.py",
    ),
    Mutant(
        "a breakpoint that is a time of the user's is landed on twice",
        "breakpoints.py",
        "if all(abs(t - b) > near for t in times)]",
        "]",
        "tests/test_breakpoints.py",
    ),
    # Dense output.
    Mutant(
        "a read state forgets that its place in the step depends on the step's length",
        "schemes/dense.py",
        " - x * rate",
        "",
        "tests/test_dense.py",
    ),
    Mutant(
        "of several states read in a step the slopes see the last one",
        "schemes/dense.py",
        "found[i] = add(found[i], _scaled",
        "found[i] = add(None, _scaled",
        "tests/test_dense.py",
    ),
    Mutant(
        "adaptive steps end at every time unless told otherwise",
        "assemble.py",
        "not (replayed or isinstance(stepsize, AdaptiveStepSize))",
        "not replayed",
        "tests/test_dense.py",
    ),
    Mutant(
        "compiled: the cotangent of a read state passes the state before the step by",
        "compiled/pullback.py",
        "a + g[0] for a, g in zip",
        "a for a, g in zip",
        "tests/test_compiled_dense.py",
    ),
    Mutant(
        "compiled: a time that is read owes nothing to the length of its step",
        "sweeps/compiled/reads.py",
        "-piece.x * rate",
        "0.0 * rate",
        "tests/test_compiled_dense.py",
    ),
    Mutant(
        "compiled: cotangents of read states of one chunk are there for the next",
        "sweeps/compiled/backward.py",
        "*(self.reads.grads if read else ())",
        "*()",
        "tests/test_compiled_dense.py",
    ),
    # Steps for each sample, compiled.
    Mutant(
        "compiled samples: one that is through accepts further steps",
        "compiled/searching.py",
        "accept = accept & active\n",
        "accept = accept | ~active\n",
        "tests/test_compiled_samples.py",
    ),
    Mutant(
        "compiled samples: the steps of a chunk overwrite those of the chunk before",
        "sweeps/samples/compiled/columns.py",
        "number = self.counts + accept",
        "number = 0 * self.counts + accept",
        "tests/test_compiled_samples.py",
    ),
    Mutant(
        "compiled samples: outputs are those before the step that lands",
        "sweeps/samples/outputs.py",
        "((~last, r + 1), (last, None))",
        "((~last, r), (last, None))",
        "tests/test_compiled_samples.py",
    ),
    Mutant(
        "compiled samples: one that sits out is evaluated where it is",
        "schemes/masked.py",
        "return Part(self.start, self.y0, p, size=len(active), mask=active)",
        "return Part(self.start, self.y0, p)",
        "tests/test_compiled_samples.py",
    ),
    Mutant(
        "compiled samples: the length of a step owes nothing to the time at its end",
        "sweeps/samples/compiled/rounds.py",
        "sigma * grad_t + delta * grad_dt)",
        "sigma * grad_t)",
        "tests/test_compiled_samples.py",
    ),
    Mutant(
        "compiled samples: the cotangents of times at which samples are read are lost",
        "sweeps/samples/compiled/backward.py",
        "stops.vjp(total) + self.grad_read",
        "stops.vjp(total)",
        "tests/test_compiled_sample_reads.py",
    ),
    Mutant(
        "compiled samples: what is read in one chunk is read again in the next",
        "sweeps/samples/compiled/places.py",
        " & (numbers >= self._next[:, None])",
        "",
        "tests/test_compiled_sample_reads.py",
    ),
    Mutant(
        "compiled samples: of several times in one step the last one has a cotangent",
        "compiled/inside.py",
        "values, accumulate=True",
        "values",
        "tests/test_compiled_sample_reads.py",
    ),
    # Half precision.
    Mutant(
        "parameter gradients are added up in half precision",
        "sweeps/cotangents.py",
        "own = wide(grad)",
        "own = grad",
        "tests/test_mixed_precision.py",
    ),
    Mutant(
        "the costate is in half precision between steps",
        "sweeps/costate.py",
        "self._grad_y, self._grad_carry = tuple(map(wide, grads.y)), grads.carry",
        "self._grad_y = tuple(g.to(y.dtype) for g, y in zip(grads.y, self._y0))\n"
        "        self._grad_carry = grads.carry",
        "tests/test_mixed_precision.py",
    ),
    Mutant(
        "h k is rounded before it is added to y",
        "state.py",
        "            terms = scale(h * weight, tuple(map(wide, slope)))",
        "            terms = scale(h * weight, slope)",
        "tests/test_mixed_precision.py",
    ),
    # Second derivatives.
    Mutant(
        "a tensor that f reads where it cannot be replaced does not move",
        "sweeps/lifted.py",
        "                check_reachable(values, [*point, *read])  # f may have read what is no alias\n",
        "",
        "tests/test_captured.py",
    ),
    # Quadrature.
    Mutant(
        "the quadrature on the way back has a weight too many",
        "gradients/quadrature.py",
        "scale(-dt * weight, stage)",
        "scale(-dt * abs(weight), stage)",
        "tests/test_modes.py",
    ),
    Mutant(
        "Gauss-Kronrod halves an interval and forgets a half",
        "gradients/kronrod.py",
        "intervals += [(middle, b), (a, middle)]",
        "intervals += [(middle, b)]",
        "tests/test_modes.py",
    ),
    Mutant(
        "the interpolated state looks across a jump",
        "sweeps/trajectory.py",
        "start = max(first, min(start, last + 1 - self._width))",
        "start = max(0, start)",
        "tests/test_modes.py tests/test_breakpoints.py",
    ),
    # The stand-in for torchdiffeq.
    Mutant(
        "the second derivative of an event is that of one chord step",
        "compat/torchdiffeq/events.py",
        "for _ in range(_ORDERS):",
        "for _ in range(1):",
        "tests/compat/test_events.py",
    ),
    Mutant(
        "the event is held where it was found",
        "compat/torchdiffeq/events.py",
        "time = time - value / slack",
        "time = time - value.detach() / slack",
        "tests/compat/test_events.py",
    ),
    Mutant(
        "outputs are read off the interval before",
        "compat/torchdiffeq/grids.py",
        "start, stop = self.ts[i - 1], self.ts[i]",
        "start, stop = self.ts[i - 2], self.ts[i - 1]",
        "tests/compat/test_grids.py",
    ),
    Mutant(
        "the norm of a tuple is that of its first part",
        "compat/torchdiffeq/controller.py",
        "[_rms(s) for s in scaled]",
        "[_rms(s) for s in scaled[:1]]",
        "tests/compat/test_norms.py",
    ),
    Mutant(
        "the first step is estimated by the order of the scheme",
        "compat/torchdiffeq/controller.py",
        "return order - 1",
        "return order",
        "tests/compat/test_norms.py",
    ),
    Mutant(
        "the smallest step is judged like any other",
        "sweeps/adaptive.py",
        "lenient = isinstance(control, LenientStepSize) and math.isfinite(ratio)",
        "lenient = False",
        "tests/compat/test_options.py",
    ),
    Mutant(
        "adjoint_params are forgotten",
        "compat/torchdiffeq/field.py",
        "func, landing, *params)",
        "func, landing)",
        "tests/compat/test_gradients.py",
    ),
    # Budgets of samples.
    Mutant(
        "the steps of samples take no memory",
        "gradients/samplerehearsal.py",
        "return work + reads + self._steps_bytes(n) + self._times_bytes",
        "return work + reads + self._times_bytes",
        "tests/test_samples_budget.py",
    ),
    Mutant(
        "rounds that are rehearsed a second time search for their steps",
        "gradients/sampleplan.py",
        "run.prepared = run.steps",
        "run.prepared = None",
        "tests/test_samples_budget.py",
    ),
    Mutant(
        "a search goes on when there is no memory for more steps",
        "sweeps/samples/record.py",
        "if most is not None and n > most:",
        "if False:",
        "tests/test_samples_budget.py",
    ),
    # Events.
    Mutant(
        "an event's time has the slope of something else",
        "events/implicit.py",
        "-grads[0] / self._root.slope",
        "-grads[0] / (1.01 * self._root.slope)",
        "tests/test_events.py",
    ),
    Mutant(
        "the steps after a jump do not move with it",
        "events/following.py",
        "ts = torch.cat([time.reshape(1), problem.ts[j:]])",
        "ts = torch.cat([time.detach().reshape(1), problem.ts[j:]])",
        "tests/test_events.py",
    ),
    Mutant(
        "the state at an event does not move with its time",
        "events/implicit.py",
        "return time, found.state(time, curve.values)",
        "return time, found.state(time.detach(), curve.values)",
        "tests/test_events.py",
    ),
    Mutant(
        "an event occurs again at once after its own jump",
        "events/watch.py",
        "        if self._fresh[i]:  # from",
        "        if False:  # from",
        "tests/test_events.py",
    ),
    Mutant(
        "an event at the same time as another one's jump is lost",
        "events/watch.py",
        "elif own is None or i == own or not self._sides[i]:",
        "else:",
        "tests/test_events.py",
    ),
    Mutant(
        "a higher derivative of an event lacks an iteration",
        "events/implicit.py",
        "for _ in range(highest):",
        "for _ in range(highest - 1):",
        "tests/test_events.py",
    ),
    Mutant(
        "higher derivatives of a node are those of a map that is right to order 0",
        "gradients/node.py",
        "outputs = self.map(order - 1, arguments, highest)",
        "outputs = self.map(order - 1, arguments)",
        "tests/test_events.py",
    ),
    Mutant(
        "an event reads the args of the solve, not those to be differentiated",
        "events/reads.py",
        "lambda: thunk(args))",
        "lambda: thunk(self._args.unflatten(self._leaves)))",
        "tests/test_events.py",
    ),
    Mutant(
        "what an event reads may change before its gradient",
        "events/implicit.py",
        "        del kept, retain\n        self.reads.check_unchanged()",
        "        del kept, retain",
        "tests/test_events.py",
    ),
]


def patched(mutant: Mutant) -> str:
    """The text of its file with the bug in it.

    Raises:
        ValueError: If the patch does not apply, or at more than one place.
    """
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        places = text.count(mutant.old)
        raise ValueError(f"{mutant.name!r} applies at {places} places of {mutant.file}: mend it")
    return text.replace(mutant.old, mutant.new)


def run(options: list[str], mutant: Mutant | None) -> tuple[int, str]:
    """pytest's exit status and output, with a mutant or without."""
    with tempfile.TemporaryDirectory(prefix="odegrad-mutant-") as directory:
        copy = Path(directory) / "odegrad"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(patched(mutant), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": directory,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        probe = "import odegrad; print(odegrad.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", probe],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0 and not found.stdout.startswith(directory):
            raise RuntimeError(f"the tests would see {found.stdout.strip()}, not the private copy")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *options],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    return done.returncode, done.stdout + done.stderr


def fate(mutant: Mutant) -> tuple[Mutant, str, float]:
    """What becomes of a mutant, and how many seconds that took."""
    began = time.monotonic()
    status, output = run(mutant.tests.split(), mutant)
    if status == 0:
        verdict = "SURVIVED"
    elif status in (1, 2):
        failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        verdict = failed[0].split(" - ")[0].split("[")[0] if failed else "caught at import"
    else:
        raise RuntimeError(f"pytest went wrong with {mutant.name!r}:\n{output}")
    return mutant, verdict, time.monotonic() - began


def hunt(chosen: list[Mutant], jobs: int, trust: bool) -> list[Mutant]:
    """The survivors of those chosen.

    Raises:
        RuntimeError: If the tests fail without a mutant.
    """
    suites = [] if trust else sorted({m.tests for m in chosen})
    with ThreadPoolExecutor(jobs) as pool:
        whole = pool.map(lambda suite: run(suite.split(), None), suites)
        for suite, (status, output) in zip(suites, whole, strict=True):
            if status != 0:
                raise RuntimeError(f"{output}\nwithout a mutant, {suite} fails: mend that first")
        survivors = []
        for mutant, verdict, seconds in pool.map(fate, chosen):
            if verdict == "SURVIVED":
                survivors.append(mutant)
            print(f"{mutant.file:26} {mutant.name:66} {seconds:4.0f} s  {verdict}", flush=True)
    return survivors


def main() -> int:
    """Runs the mutants; the exit status is 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names; none is all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--trust", action="store_true", help="the tests are known to pass as it is")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.names or any(n in m.name for n in options.names)]
    for mutant in chosen:
        patched(mutant)
    survivors = hunt(chosen, options.jobs, options.trust)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
