# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What a peer must offer to be measured beside the others."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np


class Unavailable(Exception):
    """A peer, or one of its forms, cannot be had here; the message says why."""


@dataclasses.dataclass
class Contender:
    """One way to answer a probe of a workload."""

    peer: str
    form: str
    scalar: str  # of K and V
    run: Callable[[int], None]  # answers probe i; this is what is timed
    output: Callable[[], np.ndarray]  # the last answer, float [n_query_heads, dim]
    bytes_read: Callable[[], float]  # of K, V and summaries, a step
    extra: Callable[[], dict] = dict  # more to be stored with the row
    close: Callable[[], None] = lambda: None

    @property
    def name(self):
        """Peer, form and scalar in one line."""
        return f"{self.peer}: {self.form}, {self.scalar}"


class Provider:
    """A peer on one workload: makes its contenders and knows the memory they need."""

    peer = ""
    name = ""
    formats: frozenset = frozenset()  # of Workload.converted that it reads

    def extra_bytes(self, workload) -> int:
        """Memory it needs beside its formats."""
        return 0

    def contenders(self, workload, n_threads) -> Iterator[Contender]:
        """Ready to run on n_threads threads.  Raises Unavailable."""
        raise NotImplementedError

    def close(self):
        """Frees what outlives its contenders."""
