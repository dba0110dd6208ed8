#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What wavekv_rule_sweep measured, as tables and a picture, and whether the numbers that must hold do.

    report.py SWEEP.jsonl [--pictures FOLDER] [--check]
    report.py --self-test

Rules are compared in cells: one query head of one layer, one context length, one budget. A rule's error at a budget lies on its curve,
interpolated between two of its points on logarithmic axes; where a curve does not reach a budget, the rule is not in that cell. Errors
below FLOOR are called equal: K and V are stored in bf16. --check: exit status 1 where the default bound has the lowest error
in fewer cells than it must.
"""

import argparse
import collections
import contextlib
import io
import math
import pathlib
import sys
import tempfile

from json_lines import read_rows

DEFAULT = "error_bound"
ORACLES = ("oracle_top_k", "oracle_top_p")
FLOOR = 1e-3
BYTES = (0.02, 0.04, 0.08, 0.16, 0.32)  # of all K and V
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the default bound's step
MUST = {"bytes": 0.9, "time": 0.8, "prediction": 0.9}

Curve = collections.namedtuple("Curve", "cost error")  # both ascend in cost


def promises_of(rows):
    """(data, tokens, head, epsilon, delta, part within epsilon, bytes, time) of what verified_bound promised."""
    return [
        (row["data"], row["tokens"], head, point["epsilon"], point["delta"], within, point["bytes_share"], point["time_us"])
        for row in rows
        for point in row.get("promises", [])
        for head, within in enumerate(point["within"])
    ]


def curves_of(rows, cost, quantile="p50"):
    """{(data, tokens, head): {rule: Curve}} of points sorted by cost."""
    points = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        for head, errors in enumerate(row.get("heads", [])):
            points[row["data"], row["tokens"], head][row["rule"]].append((row[cost], max(errors[quantile], 1e-9)))
    return {
        place: {rule: Curve(*zip(*sorted(of_rule))) for rule, of_rule in rules.items()}
        for place, rules in points.items()
    }


def error_at(curve, cost):
    """The lowest error that the rule has for at most this cost, on its curve; None where it has no point so cheap."""
    if cost < curve.cost[0]:
        return None
    best = math.inf
    for i, (x, y) in enumerate(zip(curve.cost, curve.error)):
        if x <= cost:
            best = min(best, y)
        elif i and x > curve.cost[i - 1]:
            part = math.log(cost / curve.cost[i - 1]) / math.log(x / curve.cost[i - 1])
            best = min(best, math.exp((1 - part) * math.log(curve.error[i - 1]) + part * math.log(y)))
            break
    return best


def costs_of(cost, rules):
    """The budgets of a place: parts of K and V, or multiples of the default's step."""
    if cost == "bytes_share":
        return BYTES
    middle = rules[DEFAULT].cost[len(rules[DEFAULT].cost) // 2]
    return tuple(middle * factor for factor in TIMES)


def compare(rows, cost):
    """(cells won, cells, {rule: [(place, budget, its error, the default's)] where it is better})."""
    won, cells = 0, 0
    lost = collections.defaultdict(list)
    for place, rules in sorted(curves_of(rows, cost).items()):
        if DEFAULT not in rules:
            continue
        for budget in costs_of(cost, rules):
            mine = error_at(rules[DEFAULT], budget)
            if mine is None:
                continue
            cells += 1
            better = []
            for rule, curve in rules.items():
                other = None if rule == DEFAULT or rule in ORACLES else error_at(curve, budget)
                if other is not None and max(other, FLOOR) < max(mine, FLOOR):
                    better.append((rule, other))
            won += not better
            for rule, other in better:
                lost[rule].append((place, budget, other, mine))
    return won, cells, lost


def print_table(rows):
    """Each rule's error at parts of the bytes, median over heads, for each data set and length."""
    curves = curves_of(rows, "bytes_share")
    places = sorted({place[:2] for place in curves})
    for data, tokens in places:
        print(f"\n{data}, {tokens} tokens: median error of the output in %, median over heads, at bytes read of all K and V\n")
        print("| rule | " + " | ".join(f"{100 * b:g} %" for b in BYTES) + " | step at its middle budget, µs |")
        print("|---|" + "---|" * (len(BYTES) + 1))
        of_place = {place: rules for place, rules in curves.items() if place[:2] == (data, tokens)}
        for rule in list(dict.fromkeys(row["rule"] for row in rows)):
            cells = []
            for budget in BYTES:
                errors = [error_at(rules[rule], budget) for rules in of_place.values() if rule in rules]
                errors = sorted(error for error in errors if error is not None)
                cells.append(f"{100 * errors[len(errors) // 2]:.2f}" if errors else "")
            times = sorted(
                row["time_us"] for row in rows if (row["data"], row["tokens"], row["rule"]) == (data, tokens, rule)
            )
            if times:
                print(f"| {rule} | " + " | ".join(cells) + f" | {times[len(times) // 2]:.0f} |")


def print_verdict(rows):
    """The lines that must hold; whether they do."""
    holds = True
    for cost, name in (("bytes_share", "bytes"), ("time_us", "time")):
        won, cells, lost = compare(rows, cost)
        share = won / cells if cells else 0.0
        holds &= share >= MUST[name]
        print(
            f"\nAt equal {name} {DEFAULT} has the lowest median error in {won} of {cells} cells ({100 * share:.1f} %; must: "
            f"{100 * MUST[name]:.0f} %): {'holds' if share >= MUST[name] else 'DOES NOT HOLD'}"
        )
        for rule, cases in sorted(lost.items()):
            print(f"- {rule} is better in {len(cases)}:")
            for (data, tokens, head), budget, other, mine in cases[:8]:
                what = f"{100 * budget:g} % of bytes" if name == "bytes" else f"{budget:.0f} µs"
                print(f"  - {data}, {tokens} tokens, head {head}, {what}: {100 * other:.2f} % against {100 * mine:.2f} %")
            if len(cases) > 8:
                print(f"  - and {len(cases) - 8} more")
    return holds


def print_promise(rows):
    """What verified_bound kept of each promise; whether the line holds."""
    promises = promises_of(rows)
    if not promises:
        return True
    print("\nverified_bound: part of the steps within ε, lowest head / all heads; bytes read, step in µs: medians over data sets and lengths\n")
    print("| asked | lowest head | all | bytes | step |\n|---|---|---|---|---|")
    broken = []
    for epsilon, delta in sorted({promise[3:5] for promise in promises}):
        of_ask = [promise for promise in promises if promise[3:5] == (epsilon, delta)]
        within = sorted(promise[5] for promise in of_ask)
        broken += [promise for promise in of_ask if promise[5] < 1 - delta]
        read = sorted(promise[6] for promise in of_ask)
        times = sorted(promise[7] for promise in of_ask)
        print(
            f"| ε {100 * epsilon:.0f} %, δ {100 * delta:.0f} % | {100 * within[0]:.1f} % | {100 * sum(within) / len(within):.2f} % | "
            f"{100 * read[len(read) // 2]:.0f} % | {times[len(times) // 2]:.0f} |"
        )
    n = len(promises)
    print(f"\nverified_bound covers at least 1 - δ on {n - len(broken)} of {n} heads and promises: {'DOES NOT HOLD' if broken else 'holds'}")
    for data, tokens, head, epsilon, delta, within, *_ in broken[:12]:
        print(f"- {data}, {tokens} tokens, head {head}: ε {100 * epsilon:.0f} %, δ {100 * delta:.0f} %, within in {100 * within:.1f} %")
    return not broken


def print_prediction(rows):
    """Whether the default bound's predicted error, calibrated, is within a factor of 2 of the observed one where it must."""
    of_default = [row for row in rows if row["rule"] == DEFAULT and "error_scale" in row and row["n_erring"] + row["n_erring_calibrated"] > 0]
    if not of_default:
        return True

    def share(kind):
        erring = sum(row["n_erring" + kind] for row in of_default)
        return sum(row["n_predicted" + kind] for row in of_default) / erring if erring else 1.0

    holds = share("_calibrated") >= MUST["prediction"]
    print(
        f"\n{DEFAULT}, calibrated with queries of the prompt, predicts the worst head's error within a factor of 2 in "
        f"{100 * share('_calibrated'):.1f} % of the steps that err (must: {100 * MUST['prediction']:.0f} %; as summaries predict it: "
        f"{100 * share(''):.1f} %): {'holds' if holds else 'DOES NOT HOLD'}\n"
    )
    print("| data, tokens | of each budget's erring steps within a factor of 2, calibrated (as summaries predict it) | error_scale |\n|---|---|---|")
    for data, tokens in dict.fromkeys((row["data"], row["tokens"]) for row in of_default):
        cells = []
        scales = []
        for row in of_default:
            if (row["data"], row["tokens"]) == (data, tokens):
                after, before = (
                    f"{100 * row['n_predicted' + kind] / row['n_erring' + kind]:.0f}" if row["n_erring" + kind] else "-"
                    for kind in ("_calibrated", "")
                )
                cells.append(f"{row['budget']:g}: {after} ({before})")
                scales.append(row["error_scale"])
        print(f"| {data}, {tokens} | {', '.join(cells)} | {min(scales):.2g} to {max(scales):.2g} |")
    return holds


def draw_promise(rows, path):
    """Asked against observed: the part of a head's steps that may miss ε, and the part that did."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    promises = promises_of(rows)
    if not promises:
        return
    epsilons = sorted({promise[3] for promise in promises})
    figure, axes = plt.subplots(1, len(epsilons), figsize=(4 * len(epsilons), 4.4), squeeze=False, sharey=True)
    for axis, epsilon in zip(axes[0], epsilons):
        for kind, (colour, shift) in {"model": ("#1f77b4", 0.94), "diffuse": ("#d95f02", 1.06)}.items():
            points = [(100 * delta * shift, 100 * max(1 - within, 1e-3)) for data, _, _, e, delta, within, *_ in promises
                      if e == epsilon and data.startswith(kind)]  # fmt: skip
            if points:
                axis.plot(*zip(*points), "o", color=colour, markersize=4, alpha=0.6, label=kind)
        axis.plot((0.5, 20), (0.5, 20), "k--", linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"ε {100 * epsilon:.0f} %")
        axis.set_xlabel("asked: at most δ, %, miss ε")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0][0].set_ylabel("observed, %, one point a head (0.1: none)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(rows, path):
    """Error against bytes and against time: a column a data set at its longest context, a curve a rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    longest = {}
    for row in rows:
        longest[row["data"]] = max(longest.get(row["data"], 0), row["tokens"])
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    colours = dict(zip(rules, plt.get_cmap("tab20").colors))
    figure, axes = plt.subplots(2, len(longest), figsize=(5 * len(longest), 9), squeeze=False, sharey="row")
    handles = {}
    for column, (data, tokens) in enumerate(sorted(longest.items())):
        for line, (cost, label) in enumerate((("bytes_share", "bytes read, % of all K and V"), ("time_us", "step, µs"))):
            axis = axes[line][column]
            for rule in rules:
                if cost == "time_us" and rule in ORACLES:
                    continue  # nobody can have it in that time
                points = []
                for row in rows:
                    if (row["data"], row["tokens"], row["rule"]) == (data, tokens, rule):
                        errors = sorted(head["p50"] for head in row["heads"])
                        points.append((row[cost] * (100 if cost == "bytes_share" else 1), 100 * max(errors[len(errors) // 2], 1e-5)))
                style = {"color": "black", "linestyle": "--" if rule == ORACLES[0] else ":"} if rule in ORACLES else {"color": colours[rule], "marker": "o", "markersize": 4}
                if points:
                    (handles[rule],) = axis.plot(*zip(*sorted(points)), linewidth=2.5 if rule == DEFAULT else 1.2, **style)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_xlabel(label)
            if column == 0:
                axis.set_ylabel("output error, %, median over queries, then heads")
            if line == 0:
                axis.set_title(f"{data}, {tokens} tokens")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def self_test():
    """Raises AssertionError unless curves are read as they should be, and the verdict can be either."""
    curve = Curve((0.01, 0.04), (0.1, 0.025))
    assert error_at(curve, 0.005) is None
    assert abs(error_at(curve, 0.02) - 0.05) < 1e-12  # half way on both axes
    assert error_at(curve, 0.04) == 0.025 and error_at(curve, 1.0) == 0.025
    assert error_at(Curve((0.01, 0.02), (0.1, 0.3)), 0.02) == 0.1  # more bytes are no obligation

    def row(rule, bytes_share, error, time_us=1.0):
        return {"data": "d", "tokens": 1, "rule": rule, "bytes_share": bytes_share, "time_us": time_us, "heads": [{"p50": error}]}

    mine = [row(DEFAULT, 0.01, 0.1, 10.0), row(DEFAULT, 0.32, 0.01, 40.0)]
    won, cells, lost = compare(mine + [row("other", 0.01, 0.2, 10.0), row("other", 0.32, 0.02, 40.0)], "bytes_share")
    assert (won, cells, dict(lost)) == (len(BYTES), len(BYTES), {})
    won, cells, lost = compare(mine + [row("other", 0.05, 0.005, 5.0)], "bytes_share")
    assert (won, cells, list(lost)) == (2, len(BYTES), ["other"]), (won, cells)
    won, cells, lost = compare(mine + [row(ORACLES[0], 0.01, 1e-6)], "bytes_share")  # no rule
    assert (won, cells) == (len(BYTES), len(BYTES))
    won, cells, lost = compare([row(DEFAULT, 0.01, 9e-4), row("other", 0.01, 1e-6)], "bytes_share")  # below the floor
    assert won == cells == len(BYTES)
    kept = {"data": "d", "tokens": 1, "rule": "verified_bound", "promises": [
        {"epsilon": 0.1, "delta": 0.05, "within": [1.0, 0.96], "bytes_share": 0.1, "time_us": 1.0}]}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert print_promise([kept])
        kept["promises"][0]["within"][1] = 0.94
        assert not print_promise([kept])
        said = [
            row(DEFAULT, 0.1, 0.1)
            | {"n_erring": n, "n_predicted": 0, "n_erring_calibrated": n, "n_predicted_calibrated": n - missed, "budget": 1, "error_scale": 2.0}
            for n, missed in ((0, 0), (10, 5), (90, 5))
        ]
        assert print_prediction(said)
        said[1]["n_predicted_calibrated"] -= 1
        assert not print_prediction(said)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "sweep.jsonl"
        file.write_text('{"rule": "a", "n": 1}\n{"rule": "b", "n": 2}\n{"rule": "a", "n": 3}\n{"rule": "c", "n"\n4\n')
        assert [row["n"] for row in read_rows(file)] == [1, 2, 3]
        assert [row["n"] for row in read_rows(file, key=("rule",))] == [3, 2]
    print("report.py: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", help="what wavekv_rule_sweep wrote")
    parser.add_argument("--pictures", help="folder to draw rules.png and promise.png into; needs matplotlib")
    parser.add_argument("--check", action="store_true", help="exit status 1 where a number that must hold does not")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        self_test()
        return 0
    if options.sweep is None:
        parser.error("names no sweep")
    rows = read_rows(options.sweep, key=("data", "tokens", "rule", "budget"))  # a rule that was cut short was measured again
    if not rows:
        print(f"{options.sweep}: no points", file=sys.stderr)
        return 2
    swept = [row for row in rows if "heads" in row]
    print_table(swept)
    holds = all([print_verdict(swept), print_promise(rows), print_prediction(swept)])
    if options.pictures:
        folder = pathlib.Path(options.pictures)
        draw(swept, folder / "rules.png")
        draw_promise(rows, folder / "promise.png")
    return 1 if options.check and not holds else 0


if __name__ == "__main__":
    sys.exit(main())
