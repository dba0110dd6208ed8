#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What wavekv_tasks asked and was answered, as tables.

    task_report.py TASKS.jsonl
    task_report.py --self-test

Score: part of the answers that are right (RULER's tasks: part of the expected strings found), in %. Drop: full attention's score less
the rule's, from the differences case by case, in percentage points, with a 95 % confidence interval: prompts, whose cases are not
independent of each other, are drawn again and again with replacement (bootstrap, 2,000 times, the same seed every time; percentiles).
Where no case differs there is nothing to draw from; the interval is then what n cases without a difference allow if each is taken for
itself, 1 - 0.05^(1/n) to either side. Exit status 1 where cases that were planned are missing.
"""

import argparse
import collections
import contextlib
import io
import random
import sys

from json_lines import read_rows

FULL = "full"
N_DRAWS = 2000

Drop = collections.namedtuple("Drop", "mean low high")


def plans_of(rows):
    """{task: its last plan}."""
    return {row["plan"]: row for row in rows if "plan" in row}


def places_of(rows):
    """{(task, tokens): {rule: {case: row}}}, in the order of the record; of planned tasks, lengths and rules."""
    plans = plans_of(rows)
    places = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in rows:
        plan = plans.get(row.get("task"))
        if plan and row["tokens"] in plan["lengths"] and row["rule"] in plan["rules"] and row["case"] < plan["cases"]:
            places[row["task"], row["tokens"]][row["rule"]][row["case"]] = row
    return places


def missing_of(rows):
    """[(task, tokens, rule, cases that are not there)] of what was planned."""
    places = places_of(rows)
    missing = []
    for task, plan in plans_of(rows).items():
        for tokens in plan["lengths"]:
            for rule in plan["rules"]:
                n = plan["cases"] - len(places.get((task, tokens), {}).get(rule, {}))
                if n:
                    missing.append((task, tokens, rule, n))
    return missing


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else 0.0


def differences_of(full, rule):
    """[[full attention's score less the rule's of each case] of each prompt]."""
    prompts = collections.defaultdict(list)
    for case, row in rule.items():
        if case in full:
            prompts[row["prompt"]].append(full[case]["score"] - row["score"])
    return list(prompts.values())


def drawn_mean(prompts, choose):
    """Mean difference over prompts drawn with replacement."""
    drawn = [prompts[choose.randrange(len(prompts))] for _ in prompts]
    return sum(map(sum, drawn)) / sum(map(len, drawn))


def drop_of(tasks):
    """Drop of a list of tasks, each [[differences] of a prompt]: the mean of the tasks' means, in points."""
    exact = mean(mean(sum(prompts, [])) for prompts in tasks)
    if not any(difference for prompts in tasks for prompt in prompts for difference in prompt):
        reach = 1 - 0.05 ** (1 / max(sum(len(prompt) for prompts in tasks for prompt in prompts), 1))
        return Drop(0.0, -100 * reach, 100 * reach)
    choose = random.Random(1)
    means = sorted(mean(drawn_mean(prompts, choose) for prompts in tasks) for _ in range(N_DRAWS))
    return Drop(100 * exact, 100 * means[int(0.025 * N_DRAWS)], 100 * means[int(0.975 * N_DRAWS) - 1])


def agreement_of(full, rule):
    """Part of the cases with the same answer as full attention's, in %."""
    shared = [case for case in rule if case in full]
    return 100 * mean(rule[case]["answer"] == full[case]["answer"] for case in shared)


def interval_of(drop):
    if drop.low == -drop.high:
        return f"± {drop.high:.1f}"
    return f"{drop.low:.1f} to {drop.high:.1f}"


def print_rules(rules, drops):
    """A line a rule: {rule: {case: row}} of one place."""
    full = rules[FULL]
    print("| rule | score | drop (95 %) | as full attention | tokens read | bytes read |\n|---|---|---|---|---|---|")
    for rule, cases in rules.items():
        score = 100 * mean(row["score"] for row in cases.values())
        read = mean(row["tokens_read"] for row in cases.values())
        part = 100 * mean(row["bytes_share"] for row in cases.values())
        end = f"{read:.0f} | {part:.1f} %"
        if rule == FULL:
            print(f"| full attention | {score:.1f} | | | {end} |")
        else:
            print(f"| {rule} | {score:.1f} | {drops[rule].mean:.1f} ({interval_of(drops[rule])}) | {agreement_of(full, cases):.1f} % | {end} |")


def print_places(places):
    for (task, tokens), rules in places.items():
        if FULL not in rules:
            continue
        prompts = len({row["prompt"] for row in rules[FULL].values()})
        print(f"\n{task}, {tokens} tokens: {len(rules[FULL])} cases of {prompts} prompts\n")
        print_rules(rules, {rule: drop_of([differences_of(rules[FULL], cases)]) for rule, cases in rules.items()})


def print_averages(places):
    """Per rule and length the mean over tasks, and over all."""
    places = {place: rules for place, rules in places.items() if FULL in rules}
    lengths = sorted({tokens for _, tokens in places})
    rules = list(dict.fromkeys(rule for of_place in places.values() for rule in of_place))
    if not lengths:
        return
    print("\nAverages over tasks: score, and in brackets the drop against full attention with its 95 % confidence interval; bytes read of all K and V\n")
    head = [f"{tokens} tokens: {', '.join(task for task, n in places if n == tokens)}" for tokens in lengths]
    print("| rule | " + " | ".join(head) + " | all | bytes read |\n|---|" + "---|" * (len(lengths) + 2))
    for rule in rules:
        cells = []
        for chosen in [[tokens] for tokens in lengths] + [lengths]:
            of = [place[rule] for (_, tokens), place in places.items() if tokens in chosen and rule in place]
            full = [place[FULL] for (_, tokens), place in places.items() if tokens in chosen and rule in place]
            score = 100 * mean(mean(row["score"] for row in cases.values()) for cases in of)
            cell = f"{score:.1f}" if of else ""
            if rule != FULL and of:
                drop = drop_of([differences_of(*pair) for pair in zip(full, of)])
                cell += f" ({drop.mean:.1f}, {interval_of(drop)})"
            cells.append(cell)
        part = 100 * mean(mean(row["bytes_share"] for row in place[rule].values()) for place in places.values() if rule in place)
        print(f"| {'full attention' if rule == FULL else rule} | " + " | ".join(cells) + f" | {part:.1f} % |")


def print_report(rows):
    """The tables; whether all that was planned is there."""
    places = places_of(rows)
    for source in (row["source"] for row in rows if "source" in row):
        print(f"Model {source.get('model')}, seed {source.get('seed')}")
        break
    print_averages(places)
    print_places(places)
    missing = missing_of(rows)
    for task, tokens, rule, n in missing:
        print(f"MISSING: {n} cases of {task}, {tokens} tokens, by {rule}")
    return not missing


def self_test():
    """Raises AssertionError unless differences are paired, intervals are what they must be, and gaps are seen."""

    def row(case, rule, score, prompt=None, answer="1"):
        return {"task": "t", "tokens": 64, "case": case, "prompt": case if prompt is None else prompt, "rule": rule, "score": score,
                "answer": answer, "tokens_read": 1, "bytes_share": 0.1}  # fmt: skip

    plan = {"plan": "t", "lengths": [64], "cases": 4, "rules": [FULL, "a", "b"]}
    rows = [plan] + [row(i, rule, 1.0) for i in range(4) for rule in (FULL, "a", "b")]
    places = places_of(rows)["t", 64]
    same = drop_of([differences_of(places[FULL], places["a"])])
    assert same.mean == 0.0 and abs(same.high - 52.7) < 0.1 and same.low == -same.high  # 1 - 0.05^(1/4)
    assert not missing_of(rows) and missing_of(rows[:-1]) == [("t", 64, "b", 1)]
    assert missing_of([plan]) == [("t", 64, rule, 4) for rule in (FULL, "a", "b")]
    # Half of 400 independent cases wrong: 1.96 * sqrt(0.25 / 400) = 4.9 points to either side.
    half = drop_of([[[float(i % 2)] for i in range(400)]])
    assert half.mean == 50.0 and abs(half.low - 45.1) < 0.8 and abs(half.high - 54.9) < 0.8, half
    # The same in ten prompts whose cases agree: much wider.
    wide = drop_of([[[float(i % 2)] * 40 for i in range(10)]])
    assert wide.mean == 50.0 and wide.low <= 25 and wide.high >= 75, wide
    # What both miss is no drop; what only the rule finds is a gain.
    full = {0: row(0, FULL, 0.0), 1: row(1, FULL, 0.0)}
    assert drop_of([differences_of(full, {0: row(0, "a", 0.0), 1: row(1, "a", 1.0)})]).mean == -50.0
    assert agreement_of(full, {0: row(0, "a", 0.0, answer="2"), 1: row(1, "a", 0.0)}) == 50.0
    assert abs(drop_of([[[1.0]], [[0.0], [0.0]]]).mean - 50.0) < 1e-9  # tasks count alike
    # A later plan of a task replaces the one before; what it leaves out is not shown.
    later = rows + [{**plan, "cases": 2, "rules": [FULL, "a"]}]
    assert not missing_of(later[:-2] + later[-1:]) and list(places_of(later)["t", 64]) == [FULL, "a"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert print_report(rows)
        assert not print_report(rows[:-1])
    assert "MISSING" in text.getvalue() and "| full attention | 100.0 |" in text.getvalue()
    print("task_report.py: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", help="what wavekv_tasks wrote")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        self_test()
        return 0
    if options.tasks is None:
        parser.error("names no record")
    rows = read_rows(options.tasks)
    if not plans_of(rows):
        print(f"{options.tasks}: no cases", file=sys.stderr)
        return 2
    return 0 if print_report(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
