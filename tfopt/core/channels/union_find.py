"""Disjoint sets of numbers, read as whole arrays (union-find; Tarjan 1975)."""

from __future__ import annotations

import numpy as np


class DisjointSets:
    """Numbers 0, 1, 2, ... in sets that can be joined; the root of a set is its smallest number.

    Example:
        >>> sets = DisjointSets(4)
        >>> sets.join(np.array([0, 1]), np.array([2, 2]))
        [(0, 2), (0, 1)]
        >>> sets.roots(np.arange(4)).tolist()
        [0, 0, 0, 3]
    """

    def __init__(self, count: int = 0):
        self.count = 0
        self._parents = np.zeros(0, np.int64)
        self.add(count)

    def add(self, count: int) -> np.ndarray:
        """New numbers, each in a set of its own."""
        new = np.arange(self.count, self.count + count)
        if self.count + count > len(self._parents):
            room = np.arange(len(self._parents), 2 * (self.count + count))
            self._parents = np.concatenate([self._parents, room])
        self.count += count
        return new

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        roots = self._parents[numbers]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                self._parents[numbers] = roots
                return roots
            roots = above

    def join(self, first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
        """Joins the sets of numbers in two arrays, broadcast to each other; gives the pairs of roots joined."""
        ones, others = np.broadcast_arrays(self.roots(first), self.roots(second))
        differ = ones != others
        pairs = np.unique(np.stack([ones[differ], others[differ]], -1), axis=0)
        joined = []
        for one, other in pairs.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            if low != high:
                self._parents[high] = low
                joined.append((low, high))
        return joined

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            number = int(self._parents[number])
        return number
