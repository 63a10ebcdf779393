"""The optimal reversal of a known number of steps with a given number of slots.

C(c + r, c) steps can be reversed with c slots if no step is taken more than r times. With r the least
such number for N steps, the fewest steps taken to reverse N, the one that is transposed itself not
counted, are

    t(N, c) = min over m of  m + t(m, c) + t(N − m, c − 1)  =  r N − C(c + r, r − 1):

advance to step m, store the state there, reverse the N − m steps behind it, then the m before it.
The start of the steps occupies one of the c slots; the state that is advanced occupies none.

Griewank & Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000); Griewank, Achieving
logarithmic growth of temporal and spatial complexity in reverse automatic differentiation, Optim.
Methods Softw. 1 (1992). Every step is taken to cost the same, and storing to cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import comb

from odegrad.checkpoints.actions import Action, Advance, Drop, Restore, Store, Transpose
from odegrad.checkpoints.checks import check_count

__all__ = ["advances", "first_sweep", "place", "placed", "repetitions", "reverse", "split"]


def advances(n: int, slots: int) -> int:
    """The fewest steps that are taken to transpose n steps in reverse with so many slots.

    t(n, c) = r n − C(c + r, r − 1), with C(c + r − 1, r − 1) < n ≤ C(c + r, r). The n steps themselves,
    whose results are the solution, need n − 1 of these: the last step begins at the last of the states.
    What is taken *again* is t(n, c) − (n − 1) steps.

    Arguments:
        n: The number of steps.
        slots: How many states can be stored, that before the first step included.

    Raises:
        InvalidTypeError: If an argument is not an int.
        InvalidValueError: If an argument is less than 1.

    Reference:
        Griewank & Walther, ACM Trans. Math. Softw. 26 (2000), equation (3).

    Example:
        >>> from odegrad.checkpoints import advances
        >>> [advances(1000, slots) for slots in (1, 2, 8, 32, 1000)]
        [499500, 28820, 4285, 2405, 999]
    """
    check_count("advances: n", n)
    check_count("advances: slots", slots)
    r = repetitions(n, slots)
    return r * n - comb(slots + r, slots + 1)


def repetitions(n: int, slots: int) -> int:
    """The least r with n ≤ C(c + r, c): how often a step has to be taken at most."""
    low, high = -1, 0  # n > C(c + low, c), and n ≤ C(c + high, c) in the end
    while comb(slots + high, slots) < n:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        if comb(slots + middle, slots) < n:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=1 << 14)
def split(n: int, slots: int) -> int:
    """Where to store the next state, for n ≥ 2 steps: an m at which the minimum for t(n, c) is taken.

    With β(c, r) = C(c + r, c), it is the number of β(c, r − 2), …, β(c, r − 1) that is nearest to
    n − β(c − 1, r − 1) − β(c − 2, r − 1). Of the optimal places it is one for which states are stored
    the least often; see Griewank & Walther, p. 34.
    """
    r = repetitions(n, slots)
    if slots == 1:
        return n - 1
    if r == 1:
        return 1
    behind = comb(slots + r - 2, slots - 1) + comb(slots + r - 3, slots - 2)
    least, most = comb(slots + r - 2, slots), comb(slots + r - 1, slots)
    return min(most, max(least, n - behind))


def place(stack: list[int], stop: int, slots: int) -> Iterator[Action]:
    """Advances from the last stored state to state `stop` − 1, storing states where it is optimal.

    Arguments:
        stack: The stored states, in order; what is stored is appended. The last one is current.
        stop: Where the steps that remain to be transposed end.
        slots: How many states can be stored.
    """
    start = stack[-1]
    while stop - start > 1:
        m = split(stop - start, slots - len(stack) + 1)
        yield Advance(start, start + m)
        start += m
        if stop - start > 1:
            stack.append(start)
            yield Store(start)


def first_sweep(n: int, slots: int) -> Iterator[Action]:
    """Advances through n steps, the last one by itself, storing states where it is optimal."""
    yield Store(0)
    yield from place([0], n, slots)
    yield Advance(n - 1, n)


def placed(n: int, slots: int) -> list[int]:
    """The states that `first_sweep` has stored in the end, in order."""
    stack = [0]
    for _ in place(stack, n, slots):
        pass
    return stack


def reverse(stack: list[int], n: int, slots: int) -> Iterator[Action]:
    """Transposes n steps, from the last to the first, and drops all states.

    The steps between two stored states are reversed optimally with the slots that are free when their
    turn comes. If `place` stored the states, that is optimal altogether.

    Arguments:
        stack: The stored states, in order, the first of which is 0. State n − 1 is current.
        n: The number of steps.
        slots: How many states can be stored.
    """
    for stop in range(n, 0, -1):
        if stop < n:
            yield Restore(stack[-1])
            yield from place(stack, stop, slots)
        yield Transpose(stop - 1, stop)
        if stack[-1] == stop - 1:
            yield Drop(stack.pop())
