"""Hands out the bytes of a result of which some are in files here and some in an object elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable

from app.copying import Tell
from app.responses import Extent
from app.storage import buckets
from app.storage.blocks import blocks_of
from app.storage.part_copies import AnyExtent
from app.storage.part_fetching import RemoteRange


async def blocks_of_any(extents: Iterable[AnyExtent], tell: Tell) -> AsyncIterator[bytes]:
    """Hand out these bytes in their order; what is elsewhere is fetched on the way.

    Raises:
        ServiceError: it cannot be had any more.
    """
    done = 0
    for is_here, group in itertools.groupby(extents, lambda each: isinstance(each, Extent)):
        if is_here:
            here = [extent for extent in group if isinstance(extent, Extent)]
            async for block in blocks_of(here, lambda _: None):
                yield block
                done += len(block)
                tell(done)
            continue
        for extent in group:
            assert isinstance(extent, RemoteRange)
            source = extent.source
            async for block in buckets.read_range(
                source.location, source.e_tag, extent.offset, extent.count
            ):
                yield block
                done += len(block)
                tell(done)
