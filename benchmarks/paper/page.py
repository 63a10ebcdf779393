"""docs/paper.md from the results and a template: every number on the page is from the file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory.parts import Record

__all__ = ["PAGE", "markdown", "render", "wrapped"]

PAGE = "paper.md"
TEMPLATE = "paper.md.j2"
WIDTH = 116
"""Characters of a line, tables apart."""

COARSE = 1e-3
"""The tolerance at which the spiral is spoken of."""


def render(results: Mapping[str, Any]) -> str:
    """The page.

    Arguments:
        results: What ``paper.json`` holds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"e": power, "f": fixed, "g": digits, "times": factor}
    parts = results["parts"]
    checks = [x for part in parts.values() for x in part["checks"]]
    known = facts(parts)
    text = environment.get_template(TEMPLATE).render(
        **parts,
        tables=tables(parts),
        facts=known,
        summary=summary(parts, known),
        machine=results["machine"],
        met=sum(x["met"] for x in checks),
        bounds=len(checks),
        van_der_pol_stop=f"{parts['inconsistency']['van_der_pol'][0]['stop']:g}",
        copies=parts["integral"]["copies"],
        most_vjps=max(x["modes"]["Backsolve"]["vjps"] for x in parts["integral"]["rows"]),
        missed=[x for x in checks if not x["met"]],
    )
    return wrapped(text)


def wrapped(text: str) -> str:
    """Paragraphs and items of lists with lines of equal length, whatever the template's are.

    Example:
        >>> print(wrapped("a\\nb\\n\\n- c\\n  d\\n- e\\n\\n    f\\n    g"))
        a b
        <BLANKLINE>
        - c d
        - e
        <BLANKLINE>
            f
            g
    """
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        as_it_is = not line.strip() or line.startswith(("#", "|", "!", "    "))
        item = re.match(r"(- |\d\. )", line)
        if as_it_is or item or not blocks[-1]:
            blocks.append([line] if not as_it_is else [])
        else:
            blocks[-1].append(line.strip())
        if as_it_is:
            blocks[-1:] = [[f"\0{line}"], []]
    lines: list[str] = []
    for block in filter(None, blocks):
        if block[0].startswith("\0"):
            lines.append(block[0][1:])
            continue
        item = re.match(r"(- |\d\. )", block[0])
        lines += textwrap.wrap(
            " ".join(block),
            WIDTH,
            subsequent_indent=" " * len(item.group()) if item else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


# Numbers.


def power(x: float | None) -> str:
    """With one decimal and a power of ten.

    Example:
        >>> power(1.234e-15), power(0.0), power(None)
        ('1.2e-15', '0', '–')
    """
    return "–" if x is None else "0" if x == 0 else f"{x:.1e}"


def fixed(x: float | None, decimals: int = 2) -> str:
    """With so many decimals."""
    return "–" if x is None else f"{x:.{decimals}f}"


def digits(x: float | None, n: int = 3) -> str:
    """With so many digits.

    Example:
        >>> digits(0.00123456), digits(123456.0), digits(1.0)
        ('0.00123', '1.23e+05', '1')
    """
    return "–" if x is None else f"{x:.{n}g}"


def factor(x: float) -> str:
    """A ratio, with no more digits than repeat.

    Example:
        >>> factor(3.816), factor(57.28)
        ('3.8', '57')
    """
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table with aligned columns, the first `left` to the left, the others to the right.

    Example:
        >>> print(markdown(["a", "b"], [["long", "1"]]))
        | a    |   b |
        |:-----|----:|
        | long |   1 |
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def shown(line: Sequence[str]) -> str:
        cells = [
            x.ljust(w) if i < left else x.rjust(w)
            for i, (x, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|".join(
        ":" + "-" * (w + 1) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([shown(lines[0]), f"|{rule}|", *map(shown, lines[1:])])


# What the page says of each part.


def facts(parts: Mapping[str, Record]) -> Record:
    """Numbers that the text mentions, made of those of the parts."""
    smooth = parts["inconsistency"]["smooth"]
    exact = parts["transpose"]["exact"]
    stiff = parts["inconsistency"]["van_der_pol"]
    adaptive = [*parts["inconsistency"]["spiral"], *stiff]
    last = -1
    return {
        "smooth": len(smooth),
        "nearer": [x for x in smooth if x["backsolve"][last] < x["discrete"][last]],
        "nearer_adaptive": [
            x
            for x in adaptive
            if x["backsolve"] is not None and x["backsolve"] < x["discrete"]
        ],
        "adaptive": len(adaptive),
        "failed": [x for x in adaptive if x["failure"]],
        "coarse": [x for x in parts["inconsistency"]["spiral"]
                   if x["rtol"] == COARSE and not x["failure"]][-1],
        "lost": next((x for x in parts["inconsistency"]["spiral"] if x["failure"]), None),
        "failed_mu": min((x["mu"] for x in stiff if x["failure"]), default=None),
        "exactness": max(
            x[kind] for x in exact for kind in ("fixed", "adaptive") if x[kind] is not None
        ),
        "exactness_problems": max(x["exactness"] for x in (*smooth, *adaptive)),
        "schemes": len(exact),
        "adaptive_schemes": sum(x["adaptive"] is not None for x in exact),
        "partners": max(
            x[what] for x in parts["transpose"]["partners"] for what in ("costate", "parameters")
        ),
        "labels": max(x[w] for x in parts["labels"]["rows"] for w in ("single", "inside", "tape")),
        "pieces": max(x[w] for x in parts["density"]["pieces"] for w in ("pieces", "whole")),
    }  # fmt: skip


def summary(parts: Mapping[str, Record], known: Record) -> str:
    """The page in one table."""
    pairs, spread = parts["transpose"]["pairs"], parts["integral"]["spread"]
    exact, inconsistent = parts["lagrange"]["remainders"]
    k = parts["labels"]["last"]["labels"]
    rows = [
        [f"`Discrete` = `Tape`, {known['schemes']} schemes, fixed and adaptive steps",
         f"{power(known['exactness'])} at most"],
        [f"symplectic partner = transposed step, {len(parts['transpose']['partners'])} schemes",
         f"{power(known['partners'])} at most"],
        ["`Mismatched` − `Tape`, different maps",
         f"{power(pairs['least'])} to {power(pairs['most'])}"],
        ["`Backsolve` is inconsistent with the computed loss", "at the order of the scheme"],
        ["`Backsolve` on the spiral and Van der Pol, 1e-3 and 1e-6",
         f"{len(known['failed'])} of {known['adaptive']} solves do not come back"],
        ["vjps of an integral, few and many parameters",
         f"the same; the augmented state's differ by {spread['Backsolve']}"],
        [f"K labels in one sweep = K sweeps, K ≤ {k}",
         f"{power(known['labels'])} at most, 1/K of the vjps"],
        ["perturbation identity of the computed J, O(ε²)",
         f"order {exact['order']:.2f}; {inconsistent['order']:.2f} with `Backsolve`"],
        ["gradient of a control's value = density, integrated over its piece",
         f"{power(known['pieces'])} at most"],
        ["⟨ȳ, ẏ⟩ = ⟨gradient, direction⟩", f"{power(parts['tangent']['most']['duality'])} at most"],
    ]  # fmt: skip
    return markdown(["statement", "measured"], rows, left=2)


def tables(parts: Mapping[str, Record]) -> dict[str, str]:
    """All tables, by name."""
    made = (_inconsistency, _transpose, _integral, _labels, _lagrange, _density, _tangent)
    found: dict[str, str] = {}
    for make, part in zip(made, parts.values(), strict=True):
        found |= make(part)
    return found


def _inconsistency(part: Record) -> dict[str, str]:
    n = part["steps"][-1]
    smooth = markdown(
        ["problem", "scheme", f"Backsolve − computed, {n} steps", "order", "Discrete − exact",
         "order", "Backsolve − exact", "Discrete − Tape"],
        [[x["problem"], x["scheme"], power(x["inconsistency"][-1]),
          fixed(x["orders"]["inconsistency"]), power(x["discrete"][-1]),
          fixed(x["orders"]["discrete"]), power(x["backsolve"][-1]), power(x["exactness"])]
         for x in part["smooth"]],
        left=2,
    )  # fmt: skip
    header = ["Backsolve − computed", "Discrete − exact", "Backsolve − exact",
              "y0 reconstructed, off by", "Discrete − Tape"]  # fmt: skip

    def row(x: Record) -> list[str]:
        if x["failure"]:
            reached = f"stops at t = {x['stopped']:.2f}"
            return [reached, power(x["discrete"]), "–", "–", power(x["exactness"])]
        return [power(x["inconsistency"]), power(x["discrete"]), power(x["backsolve"]),
                power(x["reconstruction"]), power(x["exactness"])]  # fmt: skip

    spiral = markdown(
        ["rtol", "T", "steps", *header],
        [[f"{x['rtol']:g}", f"{x['stop']:g}", str(x["accepted"]), *row(x)] for x in part["spiral"]],
    )
    stiff = markdown(
        ["μ", "steps", *header],
        [[f"{x['mu']:g}", str(x["accepted"]), *row(x)] for x in part["van_der_pol"]],
    )
    return {"smooth": smooth, "spiral": spiral, "van_der_pol": stiff}


def _transpose(part: Record) -> dict[str, str]:
    partners = {x["scheme"]: x for x in part["partners"]}
    exact = markdown(
        ["scheme", "order", "fixed steps", "adaptive steps", "accepted", "partner: costate",
         "partner: parameters"],
        [[x["scheme"], str(x["order"]), power(x["fixed"]), power(x["adaptive"]),
          str(x["accepted"] or "–"), *(power(partners.get(x["scheme"], {}).get(what))
                                       for what in ("costate", "parameters"))]
         for x in part["exact"]],
    )  # fmt: skip
    n = part["orders"][0]["steps"][-1]
    orders = markdown(
        ["solve", "transposed", "lower order", "measured", f"error, {n} steps"],
        [[x["forward"], x["back"], str(x["lower"]), fixed(x["order"]), power(x["errors"][-1])]
         for x in part["orders"]],
        left=2,
    )  # fmt: skip
    return {"exact": exact, "mismatched": orders}


def _integral(part: Record) -> dict[str, str]:
    widest = part["rows"][-1]
    rows = [
        [mode, *(str(x["modes"][mode]["vjps"]) for x in part["rows"]),
         str(widest["modes"][mode]["evaluations"]), power(widest["modes"][mode]["error"])]
        for mode in part["modes"]
    ]  # fmt: skip
    numbers = [f"{x['parameters']} parameters" if i == 0 else str(x["parameters"])
               for i, x in enumerate(part["rows"])]  # fmt: skip
    return {
        "evaluations": markdown(["", *numbers, "evaluations", "error"], rows),
        "quadrature": markdown(
            ["problem", "scheme", "own nodes: order", "error", "Gauss–Kronrod: order", "error"],
            [[x["problem"], x["scheme"],
              *(y for rule in ("own nodes", "Gauss–Kronrod")
                for y in (fixed(x["measured"][rule]), power(x["errors"][rule][-1])))]
             for x in part["orders"]],
            left=2,
        ),
    }  # fmt: skip


def _labels(part: Record) -> dict[str, str]:
    return {
        "labels": markdown(
            ["labels K", "vjps, one sweep", "vjps, K sweeps", "ratio", "time ratio",
             "single − multi", "loss_at − multi", "multi − Tape"],
            [[str(x["labels"]), str(x["vjps"]), str(x["vjps_single"]),
              factor(x["vjps_single"] / x["vjps"]), factor(x["time_ratio"]), power(x["single"]),
              power(x["inside"]), power(x["tape"])] for x in part["rows"]],
        )
    }  # fmt: skip


def _lagrange(part: Record) -> dict[str, str]:
    n = part["steps"][-1]
    chosen = [i for i, x in enumerate(part["remainders"][0]["epsilons"]) if 1e-7 < x < 1e-0]
    return {
        "lagrange": markdown(
            ["scheme", f"error of J, {n} steps", "order", "error of the gradient", "order"],
            [[x["scheme"], power(x["cost"][-1]), fixed(x["orders"]["cost"]),
              power(x["gradient"][-1]), fixed(x["orders"]["gradient"])] for x in part["orders"]],
        ),
        "remainders": markdown(
            ["remainder", *(f"ε = {part['remainders'][0]['epsilons'][i]:.0e}" for i in chosen), "order"],
            [[x["mode"], *(power(x["remainders"][i]) for i in chosen), fixed(x["order"])]
             for x in part["remainders"]],
        ),
    }  # fmt: skip


def _density(part: Record) -> dict[str, str]:
    n = part["steps"][-1]
    pieces = {x["scheme"]: x for x in part["pieces"]}
    return {
        "density": markdown(
            ["scheme", f"density of u, {n} steps per piece", "order", "density of A", "order",
             "sum over a piece − gradient", "whole sum − gradient"],
            [[x["scheme"], power(x["u"][-1]), fixed(x["orders"]["u"]), power(x["A"][-1]),
              fixed(x["orders"]["A"]), power(pieces[x["scheme"]]["pieces"]),
              power(pieces[x["scheme"]]["whole"])] for x in part["orders"]],
        ),
        "optima": markdown(
            ["pieces", "control off by", "cost off by", "iterations"],
            [[str(x["pieces"]), power(x["control"]), power(x["cost"]), str(x["iterations"])]
             for x in part["optima"]],
        ),
    }  # fmt: skip


def _tangent(part: Record) -> dict[str, str]:
    return {
        "tangent": markdown(
            ["numbers to differentiate for", "evaluations, Tangent", "evaluations, Discrete",
             "time ratio"],
            [[str(x["numbers"]), str(x["tangent_evaluations"]), str(x["discrete_evaluations"]),
              factor(x["time_ratio"])] for x in part["rows"]],
        ),
        "duality": markdown(
            ["costate", "relative drift of ⟨λₙ, ẏₙ⟩, largest"],
            [[x["mode"], power(x["drift"])] for x in part["along"]],
        ),
    }  # fmt: skip
