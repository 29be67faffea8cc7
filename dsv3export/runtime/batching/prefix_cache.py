"""Latents of earlier sequences, so that a prompt with a known beginning computes only what is new.

A sequence is kept as a chain of blocks of up to `BLOCK` tokens: a tree whose nodes are the tokens of a block behind
those of its parents. Blocks never change. A slot gets a copy of the rows it may use, also of a part of a block, and
owns it: what it appends touches no other sequence. When the pool is full, the leaf that was used longest ago goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dsv3export.errors import BackendError, ResourceError
from dsv3export.runtime.drafting import drafter
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.session import CopyingSession, Session

# Copies rows into a cache's slot, from a row on: (cache, slot, start, source, source_slot, rows).
CopyRows = Callable[[LatentCache, int, int, LatentCache, int, range], None]

BLOCK = 64
_DEFAULT_BYTES = 256 << 20


@dataclass(eq=False)
class _Block:
    """`tokens` behind those of its parents; their latents are in the pool's slot `place`."""

    place: int
    tokens: tuple[int, ...]
    parent: _Block | None
    children: dict[tuple[int, ...], _Block] = field(default_factory=dict)


@dataclass
class PrefixStats:
    """Counts since the cache was made, in tokens: of prompts looked up, of those found, and of blocks given up."""

    asked: int = 0
    found: int = 0
    evicted: int = 0


class PrefixCache:
    """Blocks of latents by the tokens that led to them.

    Args:
        layouts: Of the latent caches that sequences run in: the trunk's, and the MTP layer's where it drafts. A row of
            the latter depends on one token more, which may be another one where a block ends: such a row makes a draft
            worse, and no result wrong.
        nbytes: Memory for the blocks; it is taken as they are filled.
        copy_rows: How rows get from one cache into another.

    Raises:
        ResourceError: `nbytes` holds less than one block.
    """

    def __init__(
        self, layouts: Sequence[CacheLayout], nbytes: int, copy_rows: CopyRows = LatentCache.copy_rows
    ) -> None:
        block_bytes = BLOCK * sum(layout.bytes_per_token for layout in layouts)
        blocks = nbytes // block_bytes
        if blocks < 1:
            raise ResourceError(
                "prefix cache",
                expected=f"at least {block_bytes} bytes, a block of {BLOCK} tokens",
                got=str(nbytes),
            )
        self._copy_rows = copy_rows
        self._pools = [LatentCache(layout, blocks, BLOCK) for layout in layouts]
        self._free = list(range(blocks - 1, -1, -1))
        self._root = _Block(-1, (), None)
        self._used: OrderedDict[_Block, None] = OrderedDict()  # longest ago first
        self.stats = PrefixStats()

    def __len__(self) -> int:
        """Blocks that are filled."""
        return len(self._used)

    def fetch(self, tokens: Sequence[int], slot: int, *caches: LatentCache) -> int:
        """Copies the latents of the longest known beginning of `tokens` into a slot; returns how many tokens that are.

        One token is left at least, since a step must compute something for there to be logits.
        """
        limit = len(tokens) - 1
        node, found = self._root, 0
        while found < limit:
            child, shared = _best_child(node, tokens[found : min(limit, found + BLOCK)])
            if child is None:
                break
            for pool, cache in zip(self._pools, caches, strict=True):
                self._copy_rows(cache, slot, found, pool, child.place, range(shared))
            self._used.move_to_end(child)
            found += shared
            if shared < BLOCK:
                break
            node = child
        self.stats.asked += len(tokens)
        self.stats.found += found
        return found

    def store(self, tokens: Sequence[int], slot: int, *caches: LatentCache) -> None:
        """Keeps the latents of `tokens`, which are the first rows of a slot. Blocks that are known are not copied."""
        node, path = self._root, {self._root}
        for start in range(0, len(tokens), BLOCK):
            part = tuple(tokens[start : start + BLOCK])
            child = node.children.get(part)
            if child is None:
                place = self._place(path)
                if place is None:  # every block is part of this sequence
                    return
                child = _Block(place, part, node)
                for pool, cache in zip(self._pools, caches, strict=True):
                    self._copy_rows(pool, place, 0, cache, slot, range(start, start + len(part)))
                self._drop_beginnings(node, part)
                node.children[part] = child
                self._used[child] = None
            self._used.move_to_end(child)
            path.add(child)
            node = child

    def clear(self) -> None:
        """Forgets everything."""
        self._free += [block.place for block in self._used]
        self._used.clear()
        self._root.children.clear()

    def _place(self, keep: set[_Block]) -> int | None:
        """A free place of the pool, after giving up a leaf if need be, but none of `keep`."""
        if not self._free:
            leaf = next((block for block in self._used if not block.children and block not in keep), None)
            if leaf is None:
                return None
            self.stats.evicted += len(leaf.tokens)
            self._give_up(leaf)
        return self._free.pop()

    def _drop_beginnings(self, node: _Block, part: tuple[int, ...]) -> None:
        """Gives up shorter blocks that `part` begins with: it says all that they do."""
        for tokens, child in list(node.children.items()):
            if part[: len(tokens)] == tokens and not child.children:
                self._give_up(child)

    def _give_up(self, leaf: _Block) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens], self._used[leaf]
        self._free.append(leaf.place)


def prefix_cache_for(session: Session, nbytes: int | None, drafting: bool = False) -> PrefixCache | None:
    """A session's, of that many bytes; None for 0. Where `nbytes` is None, 256 MiB on the CPU and none elsewhere.

    Over several ranks the bytes are those of rank 0's layers; the others keep as many tokens.

    Raises BackendError where the cache is on a device, RequestError where it is to draft and cannot.
    """
    copy_rows = session.copy_rows if isinstance(session, CopyingSession) else LatentCache.copy_rows
    on_host = session.cache_on_host or isinstance(session, CopyingSession)
    if nbytes is None:
        nbytes = _DEFAULT_BYTES if on_host else 0
    if not nbytes:
        return None
    if not on_host:
        raise BackendError("prefix cache", expected="an engine that computes on the CPU", got="one on a device")
    layouts = [session.cache_layout]
    if drafting:
        layouts.append(drafter(session).draft_cache_layout)
    return PrefixCache(layouts, nbytes, copy_rows)


def _best_child(node: _Block, wanted: Sequence[int]) -> tuple[_Block | None, int]:
    """The child that shares most with `wanted` from the start on, and how many tokens that are; (None, 0) if none."""
    exact = node.children.get(tuple(wanted))
    if exact is not None:
        return exact, len(wanted)
    shared = [(_shared(child.tokens, wanted), child) for child in node.children.values()]
    most, child = max(shared, key=lambda pair: pair[0], default=(0, None))
    return (child, most) if most else (None, 0)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
