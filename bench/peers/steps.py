# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Decode steps of every contender on one workload, as many side by side as memory allows."""

import os

from contender import Unavailable
from interleave import interleave
from words import LIMIT

SPARE_BYTES = 1 << 30  # left to the system and to what peers allocate on their way
FAR_BEHIND = 1.5  # a peer this many times slower than the fastest is not taken to far contexts


def available_bytes():
    """Memory that can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")


def pin(cores, n_threads):
    """Keeps this thread, and those it starts from now on, on the first n_threads cores."""
    os.sched_setaffinity(0, set(cores[:n_threads]))


def pack(workload, providers, budget):
    """Providers in batches that fit the budget together; the first provider is in each. Second result: those that do
    not fit even alone, with the bytes they need."""

    def need(batch):
        formats = frozenset().union(*(provider.formats for provider in batch))
        return sum(map(workload.format_bytes, formats)) + sum(
            provider.extra_bytes(workload) for provider in batch
        )

    base, *others = providers
    batches, too_large = [[base]], []
    for provider in others:
        if need([base, provider]) > budget:
            too_large.append((provider, need([provider])))
        elif need([*batches[-1], provider]) <= budget:
            batches[-1].append(provider)
        else:
            batches.append([base, provider])
    return batches, too_large


class StepMeasurement:
    """Collects rows and what was skipped over all workloads of a run."""

    def __init__(self, library, cores, n_runs, log, near_context, far_behind_form):
        """near_context: above it, what was far slower on shorter contexts is left out, with a line that says so: peers,
        and forms that are far_behind_form times slower than their peer's best."""
        self._near_context, self._far_behind_form = near_context, far_behind_form
        self._library, self._cores, self._n_runs, self._log = library, cores, n_runs, log
        self.rows, self.skipped, self.builds = [], [], []
        self._providers = {}  # (shape, threads) -> {provider: ms a token of its best form}
        self._best = {}  # (shape, threads, peer) -> {form: ms a token} at the largest context so far

    def skip(self, what, where, why):
        """Notes and prints something that is not measured."""
        self.skipped.append({"what": what, "where": where, "why": why})
        self._log(f"skipped: {what} ({where}): {why}")

    def measure(self, workload, providers, threads=(1, 2)):
        """All providers on one workload; the first stands beside the others in every batch."""
        self._log(f"=== {workload.name}")
        providers = [p for p in providers if not self._is_far_behind_all(workload, p, threads)]
        workload.expected()
        budget = available_bytes() - SPARE_BYTES
        batches, too_large = pack(workload, providers, budget)
        for provider, n_bytes in too_large:
            self.skip(
                provider.name,
                workload.name,
                f"needs {n_bytes / 1e9:.1f} GB beside the data and wavekv; {budget / 1e9:.1f} GB are left",
            )
        base = batches[0][0]
        for number, batch in enumerate(batches):
            workload.release(keep=frozenset().union(*(p.formats for p in batch)))
            for n_threads in threads:
                self._measure_batch(workload, batch, number, n_threads)
            for provider in batch:
                if provider is not base:
                    provider.close()
        base.close()
        workload.release()

    def _measure_batch(self, workload, batch, number, n_threads):
        contenders, owners = [], []
        for provider in batch:
            # Building may use all cores, a timed step those it is measured on.

            self._library.set_threads(len(self._cores))
            had_build = getattr(provider, "build", None) is not None
            pin(self._cores, n_threads if provider.peer != "wavekv" else len(self._cores))
            try:
                for contender in provider.contenders(workload, n_threads):
                    if self._is_far_behind(workload, contender, n_threads):
                        contender.close()
                    else:
                        contenders.append(contender)
                        owners.append(provider.name)
            except Unavailable as error:
                self.skip(provider.name, f"{workload.name}, {n_threads} threads", str(error))
            build = getattr(provider, "build", None)
            if build is not None and not had_build:
                self.builds.append(
                    {**build, "context": workload.context, "shape": str(workload.shape),
                     "data": workload.data, "threads": len(self._cores)}
                )
        pin(self._cores, n_threads)
        self._library.set_threads(n_threads)
        found = interleave(
            self._library,
            workload,
            contenders,
            self._n_runs,
            lambda text: self._log(f"{workload.name}, {n_threads} threads: {text}", passing=True),
        )
        for contender in contenders:
            contender.close()
        for row, owner in zip(found, [LIMIT, *owners]):
            row |= {
                "data": workload.data,
                "shape": str(workload.shape),
                "context": workload.context,
                "threads": n_threads,
                "batch": number,
            }
            key = (row["shape"], n_threads, row["peer"])
            if row["peer"] not in (LIMIT, "wavekv"):
                name = f"{row['form']}, {row['scalar']}"
                per_token = row["median_ms"] / workload.context
                self._best.setdefault(key, {})[name] = per_token
                best = self._providers.setdefault(key[:2], {})
                best[owner] = min(per_token, best.get(owner, per_token))
        self.rows += found
        for row in found:
            self._log(
                f"{row['peer']:>12} {row['form']:<46} {row['scalar']:<5}"
                f" {row['median_ms']:9.2f} ms (min {row['min_ms']:.2f}), {row['gb_s']:.1f} GB/s"
            )

    def _is_far_behind_all(self, workload, provider, threads):
        """Whether a dense peer was far slower than the fastest one before, at every number of threads; says so."""
        if workload.context <= self._near_context:
            return False
        behind = []
        for n_threads in threads:
            known = self._providers.get((str(workload.shape), n_threads), {})
            if provider.name not in known:
                return False
            behind.append(known[provider.name] / min(known.values()))
        if min(behind) <= FAR_BEHIND:
            return False
        self.skip(
            provider.name,
            workload.name,
            f"{min(behind):.1f} times as slow as the fastest dense peer on shorter contexts",
        )
        return True

    def _is_far_behind(self, workload, contender, n_threads):
        """Whether this form was far slower than its peer's best before; says so."""
        if workload.context <= self._near_context:
            return False
        known = self._best.get((str(workload.shape), n_threads, contender.peer), {})
        mine = known.get(f"{contender.form}, {contender.scalar}")
        if mine is None or mine <= self._far_behind_form * min(known.values()):
            return False
        self.skip(
            contender.name,
            f"{workload.name}, {n_threads} threads",
            f"{mine / min(known.values()):.1f} times as slow as this peer's best form on shorter contexts",
        )
        return True

