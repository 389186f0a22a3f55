"""A least-recently-used store of prompt beginnings, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

from visiondrop.prefix import Prefix

__all__ = ["CacheStats", "PrefixStore"]


@dataclass
class CacheStats:
    """What a cache did, and what it holds now.

    Attributes:
        hits, misses: prefixes found, and prefixes that had to be built.
        evictions: prefixes let go of to stay within the limit.
        entries, held_bytes: prefixes held, and the bytes of their keys and values.
        max_bytes: the limit.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    held_bytes: int = 0
    max_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of prefixes found, 0 to 1; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "hit_rate": self.hit_rate}


class PrefixStore:
    """Prefixes by their key; the least recently used go first.

    Args:
        max_bytes: limit of the keys and values that are held. A prefix in use outlives its
            eviction.

    Raises `ValueError` on a negative limit.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: give the bytes to hold, 0 for none")
        self.max_bytes = max_bytes
        self._held: OrderedDict[str, Prefix] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def __contains__(self, key: str) -> bool:
        """Whether the prefix of that key is held."""
        return key in self._held

    @property
    def stats(self) -> CacheStats:
        """Counts so far."""
        held = len(self._held), self._bytes
        return CacheStats(self._hits, self._misses, self._evictions, *held, self.max_bytes)

    def get(self, key: str) -> Prefix | None:
        """The prefix of that key if it is held; it is then the most recently used."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def add(self, prefix: Prefix) -> None:
        """Hold a prefix, and let go of those asked for longest ago.

        One that is larger than the limit is not held.
        """
        self.drop(prefix.key)
        if prefix.kv_bytes > self.max_bytes:
            return
        self._held[prefix.key] = prefix
        self._bytes += prefix.kv_bytes
        while self._bytes > self.max_bytes:
            self.drop(next(iter(self._held)))
            self._evictions += 1

    def drop(self, key: str) -> None:
        """Let go of a prefix, if it is held."""
        prefix = self._held.pop(key, None)
        self._bytes -= 0 if prefix is None else prefix.kv_bytes

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._bytes = 0
