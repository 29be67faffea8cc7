"""What rank 0 tells the others to do, as bytes: a header of fixed size, then arrays whose sizes it gives.

Nothing is unpickled: a message can only ever be one of these commands.

    bytes 0..63    magic, version, kind, flags, batch, length, rows, width, cache, first slot, slots, capacity
    then           int64: start [batch], logit_rows [rows], input_ids [batch * length]

A first message has room for a small step's arrays; those that do not fit come as a second one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from dsv3export.errors import InternalError

if TYPE_CHECKING:
    from dsv3export.runtime.session import IntArray

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_MAGIC, _VERSION = b"DSV3", 1
_HEADER = struct.Struct("<4sHBBIIIIIIIQ")
_HEADER_BYTES = 64
MESSAGE_BYTES = 512
_INLINE = (MESSAGE_BYTES - _HEADER_BYTES) // 8


class Kind(IntEnum):
    """What to do."""

    STEP = 1
    DRAFT = 2
    DROP_CACHE = 3
    REPORT = 4
    END = 5
    COPY_ROWS = 6


@dataclass(frozen=True)
class RowCopy:
    """Rows of one cache that another one gets.

    Attributes:
        start: The first row that is written, in the command's cache and first slot.
        source, slot: The number of the cache that is read, and its slot.
        rows: Its rows.
    """

    start: int
    source: int
    slot: int
    rows: range


@dataclass(frozen=True, eq=False)
class Command:
    """One command.

    Attributes:
        kind: STEP and DRAFT compute; DROP_CACHE frees a cache; COPY_ROWS copies rows from another one; REPORT asks for
            the rank's figures; END ends it.
        cache: The number of the latent cache, of `slots` sequences of `capacity` tokens; made where it is new.
        first_slot: The step is over as many slots from here as `start` has.
        start, logit_rows, input_ids: int64[B], [R], [B, S]; of a draft, the ids are those of the next tokens.
        hidden: Whether hidden states are wanted, too.
    """

    kind: Kind
    cache: int = 0
    slots: int = 0
    capacity: int = 0
    first_slot: int = 0
    start: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    logit_rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    input_ids: IntArray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    hidden: bool = False

    @classmethod
    def copy_rows(cls, cache: int, slots: int, capacity: int, slot: int, copy: RowCopy) -> Command:
        """COPY_ROWS into `slot` of a cache; the copy's five numbers take the place of `logit_rows`."""
        numbers = np.array([copy.start, copy.source, copy.slot, copy.rows.start, copy.rows.stop], np.int64)
        return cls(Kind.COPY_ROWS, cache, slots, capacity, slot, logit_rows=numbers)

    @property
    def row_copy(self) -> RowCopy:
        """What COPY_ROWS copies."""
        start, source, slot, first, stop = (int(number) for number in self.logit_rows)
        return RowCopy(start, source, slot, range(first, stop))

    @property
    def slot_range(self) -> range:
        """The slots that the step is over."""
        return range(self.first_slot, self.first_slot + len(self.start))

    def to_messages(self) -> list[Bytes]:
        """One message of MESSAGE_BYTES, or that and one with the arrays."""
        batch, length = self.input_ids.shape
        arrays = np.concatenate([self.start, self.logit_rows, self.input_ids.reshape(-1)]).astype(np.int64)
        first = np.zeros(MESSAGE_BYTES, np.uint8)
        header = _HEADER.pack(
            _MAGIC, _VERSION, self.kind, self.hidden, batch, length, len(self.logit_rows), self.cache,
            self.first_slot, self.slots, 0, self.capacity,
        )  # fmt: skip
        first[: len(header)] = np.frombuffer(header, np.uint8)
        data = arrays.view(np.uint8)
        if len(arrays) <= _INLINE:
            first[_HEADER_BYTES : _HEADER_BYTES + len(data)] = data
            return [first]
        return [first, data]


class CommandReader:
    """Puts a command together from its messages."""

    def __init__(self, first: Bytes) -> None:
        fields = _HEADER.unpack_from(first.tobytes())
        magic, version, kind, hidden, batch, length, rows, cache, first_slot, slots, _, capacity = fields
        if (magic, version) != (_MAGIC, _VERSION) or kind not in list(Kind):
            raise InternalError(f"a message that is no command: {bytes(first[:16])!r}")
        self._command = Command(Kind(kind), cache, slots, capacity, first_slot, hidden=bool(hidden))
        self._sizes = (batch, rows, batch * length)
        self._shape = (batch, length)
        count = sum(self._sizes)
        self._inline = first[_HEADER_BYTES : _HEADER_BYTES + 8 * count] if count <= _INLINE else None
        self.second_bytes = 0 if self._inline is not None else 8 * count

    def command(self, second: Bytes | None = None) -> Command:
        """The command; `second` is the message of `second_bytes` bytes, where there is one."""
        data = self._inline if second is None else second
        if data is None:
            raise InternalError("a command without its arrays")
        start, rows, ids = np.split(data.copy().view(np.int64), np.cumsum(self._sizes)[:2])
        return replace(self._command, start=start, logit_rows=rows, input_ids=ids.reshape(self._shape))
