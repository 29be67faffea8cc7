"""How an engine is cut over several ranks: the layout of the world, and what each rank holds and sends.

A world of P x T x E ranks. Ranks of one pipeline stage are neighbours; rank = (p * E + e) * T + t.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast, get_args

from dsv3export.engine.typed_json import JsonValue
from dsv3export.errors import EngineError

Group = Literal["tensor", "stage"]
GROUPS: tuple[Group, ...] = get_args(Group)
Collective = Literal["all_reduce", "gather", "send"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)
RowOf = Literal["token", "logit"]
RANK_PREFIX = "rank-"
_MAX_WORLD = 1 << 16


class Coordinates(NamedTuple):
    """A rank's place: pipeline stage, expert range and tensor slice."""

    p: int
    e: int
    t: int


@dataclass(frozen=True)
class Layout:
    """The sizes of the three axes.

    Attributes:
        pp: Pipeline stages, each a range of layers.
        tp: Tensor parallel: attention heads and the experts' width.
        ep: Expert parallel: ranges of routed experts.
    """

    pp: int = 1
    tp: int = 1
    ep: int = 1

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.pp * self.stage

    @property
    def stage(self) -> int:
        """How many ranks a pipeline stage has."""
        return self.tp * self.ep

    def coordinates(self, rank: int) -> Coordinates:
        """Of a rank, 0 to world - 1."""
        p, place = divmod(rank, self.stage)
        return Coordinates(p, *divmod(place, self.tp))

    def rank_of(self, p: int, e: int, t: int) -> int:
        """The rank at these coordinates."""
        return (p * self.ep + e) * self.tp + t

    def group(self, rank: int, group: Group) -> range:
        """The ranks of a rank's tensor group, which share experts, or of its whole stage; in order."""
        p, e, _ = self.coordinates(rank)
        if group == "stage":
            return range(p * self.stage, (p + 1) * self.stage)
        first = self.rank_of(p, e, 0)
        return range(first, first + self.tp)

    def previous(self, rank: int) -> int | None:
        """The rank that this one receives hidden states from; None in the first stage."""
        return rank - self.stage if rank >= self.stage else None

    def next(self, rank: int) -> int | None:
        """The rank that this one sends hidden states to; None in the last stage."""
        return rank + self.stage if rank + self.stage < self.world else None

    @property
    def logits_rank(self) -> int:
        """The rank that the logits are gathered to: the first one of the last stage."""
        return (self.pp - 1) * self.stage

    def describe(self) -> str:
        """For people."""
        return f"pp {self.pp} x tp {self.tp} x ep {self.ep}"


@dataclass(frozen=True)
class Traffic:
    """What one kind of communication of a rank takes in a step.

    Attributes:
        op: ``all_reduce`` sums an array over a group, ``gather`` puts parts together on the group's first rank,
            ``send`` hands an array to the next stage.
        group: Among whom; None for ``send``.
        ranks: How many take part.
        per_step: How often in a step.
        bytes_per_row: Of this rank's array, for each row.
        row: What a row is of: a token of the step, or a row of logits that was asked for.
        sends: Whether this rank sends its array (the first rank of a ``gather`` only receives).
    """

    op: Collective
    group: Group | None
    ranks: int
    per_step: int
    bytes_per_row: int
    row: RowOf
    sends: bool = True

    @property
    def payload_per_row(self) -> int:
        """Bytes handed to the communicator in a step, for each row."""
        return self.per_step * self.bytes_per_row

    @property
    def sent_per_row(self) -> Fraction:
        """Bytes that leave this rank in a step, for each row.

        An all-reduce among n ranks of x bytes takes 2 (n - 1) / n x at least (Patarasuk and Yuan 2009), which rings
        and halving-doubling reach.
        """
        if not self.sends:
            return Fraction(0)
        ring = Fraction(2 * (self.ranks - 1), self.ranks)
        return self.payload_per_row * (ring if self.op == "all_reduce" else Fraction(1))


@dataclass(frozen=True)
class RankPlan:
    """What a rank holds.

    Attributes:
        rank: Its number.
        layers: The first of its decoder layers, and the one behind the last.
        weight_bytes: Of its weights, in the engine or in the checkpoint.
        cache_bytes_per_token: Of the latent cache of its layers.
        traffic: Of one step of the trunk.
        draft_traffic: Of one draft of the MTP layer; empty where the rank has no part in it.
    """

    rank: int
    layers: tuple[int, int]
    weight_bytes: int
    cache_bytes_per_token: int
    traffic: tuple[Traffic, ...]
    draft_traffic: tuple[Traffic, ...] = ()

    def sent_per_token(self) -> Fraction:
        """Bytes that leave the rank when each token of a step has logits, as in decoding."""
        return sum((each.sent_per_row for each in self.traffic), Fraction(0))


@dataclass(frozen=True)
class Parallel:
    """`parallel` of an engine.json: of the whole engine, or of one rank's part.

    Attributes:
        layout: The sizes of the axes.
        rank: Whose part it is; None for the whole.
        digest: SHA-256, the same in all parts of one build and in no other.
        ranks: The plan of each rank.
    """

    layout: Layout
    rank: int | None
    digest: str
    ranks: tuple[RankPlan, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.layout),
            "rank": self.rank,
            "digest": self.digest,
            "ranks": [asdict(plan) for plan in self.ranks],
        }


def rank_folder(rank: int) -> str:
    """The folder of a rank's part, relative to the engine."""
    return f"{RANK_PREFIX}{rank:03d}"


def plan_digest(layout: Layout, ranks: Sequence[RankPlan], build_key: str) -> str:
    """The digest of a build: over its plan and the key of its weights."""
    facts = [asdict(layout), [asdict(plan) for plan in ranks], build_key]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def parse_parallel(document: JsonValue) -> Parallel:
    """Raises EngineError."""
    fields = document.fields("pp", "tp", "ep", "rank", "digest", "ranks")
    layout = Layout(*(fields[axis].integer(minimum=1, maximum=_MAX_WORLD) for axis in ("pp", "tp", "ep")))
    ranks = tuple(_rank(entry) for entry in fields["ranks"].array())
    if [plan.rank for plan in ranks] != list(range(layout.world)):
        raise EngineError(
            fields["ranks"].where, expected=f"the {layout.world} ranks of {layout.describe()} in order",
            got=f"{len(ranks)} entries",
        )  # fmt: skip
    rank = None if fields["rank"].value is None else fields["rank"].integer(maximum=layout.world - 1)
    return Parallel(layout, rank, fields["digest"].sha256(), ranks)


def _rank(document: JsonValue) -> RankPlan:
    fields = document.fields(*RankPlan.__dataclass_fields__)
    layers = fields["layers"].integers()
    if len(layers) != 2 or layers[0] > layers[1]:
        fields["layers"].fail("the first layer and the one behind the last")
    traffic, drafts = (
        tuple(_traffic(entry) for entry in fields[name].array()) for name in ("traffic", "draft_traffic")
    )
    return RankPlan(
        fields["rank"].integer(), (layers[0], layers[1]), fields["weight_bytes"].integer(),
        fields["cache_bytes_per_token"].integer(), traffic, drafts,
    )  # fmt: skip


def _traffic(document: JsonValue) -> Traffic:
    fields = document.fields(*Traffic.__dataclass_fields__)
    if not isinstance(fields["sends"].value, bool):
        fields["sends"].fail("true or false")
    return Traffic(
        op=cast("Collective", fields["op"].choice(*COLLECTIVES)),
        group=None if fields["group"].value is None else cast("Group", fields["group"].choice(*GROUPS)),
        ranks=fields["ranks"].integer(minimum=1),
        per_step=fields["per_step"].integer(),
        bytes_per_row=fields["bytes_per_row"].integer(),
        row=cast("RowOf", fields["row"].choice("token", "logit")),
        sends=fields["sends"].value,
    )
