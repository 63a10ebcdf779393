"""The tables of the page, from the records of the parts."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.memory.parts import Record
from benchmarks.paper.numbers import factor, fixed, markdown, power

__all__ = ["tables"]


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
