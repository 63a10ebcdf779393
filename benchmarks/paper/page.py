"""docs/paper.md from the results and a template: every number on the page is from the file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.memory.parts import Record
from benchmarks.paper.numbers import digits, factor, fixed, markdown, power
from benchmarks.paper.tables import tables

__all__ = ["PAGE", "render", "wrapped"]

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
        # No line may begin with what Markdown takes for the mark of a list, a quotation or a heading.
        start = len(item.group()) if item else 0
        text = " ".join(block)
        glued = text[:start] + re.sub(r" (?=([-+*=−>#]+|\d+[.)]) )", "\1", text[start:])
        found = textwrap.wrap(
            glued,
            WIDTH,
            subsequent_indent=" " * start,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [line.replace("\1", " ") for line in found]
    return "\n".join(lines)


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
