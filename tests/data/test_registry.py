"""The entries of official files: complete, and consistent with each other."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llava.data.registry import BY_HAND, SOURCES
from llava.data.sources import Resource, Source
from llava.eval.benchmarks import BENCHMARKS, get_benchmark
from tests.data.official import contents


def every() -> Iterator[tuple[Source, Resource]]:
    return ((source, resource) for source in SOURCES.values() for resource in source.resources)


def test_there_is_an_entry_for_every_benchmark():
    assert list(SOURCES) and set(SOURCES) | set(BY_HAND) == set(BENCHMARKS)
    assert not set(SOURCES) & set(BY_HAND)
    for name, source in SOURCES.items():
        for split in source.splits:
            assert get_benchmark(name, split).split == split
            assert source.resources_of(split)


def test_entries_are_well_formed():
    addresses: dict[str, str] = {}
    for source, resource in every():
        assert addresses.setdefault(resource.file, resource.url) == resource.url
        assert resource.url.startswith("https://") or resource.summed, resource.url
        assert resource.summed == bool(resource.sum_from)
        for value, length in ((resource.sha256, 64), (resource.md5, 32)):
            assert value is None or (len(value) == length and int(value, 16))
        assert resource.size is None or resource.summed
        assert set(resource.splits) <= set(source.splits)
        uses = [resource.place, resource.members, resource.pictures, resource.trees]
        assert any(uses) and (resource.place is None or not any(uses[1:]))
    mirrored = [urlsplit(url).path for url in addresses.values()]
    assert len(set(mirrored)) == len(mirrored)  # one mirror can stand for all hosts


def test_each_benchmark_can_be_prepared_from_miniature_files():
    """At the default split, and at another of VizWiz's."""
    files = set(contents())
    assert files <= {resource.file for _, resource in every()}
    for source in SOURCES.values():
        assert {resource.file for resource in source.resources_of(None)} <= files
