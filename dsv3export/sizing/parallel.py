"""Whether a model can be cut by a layout, and where its pipeline stages begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout
from dsv3export.errors import RequestError
from dsv3export.recipe import Component, Recipe, Scheme
from dsv3export.sizing.weights import CHANNEL_GROUP, FP8_BLOCK, weight_bytes_by_layer


@dataclass(frozen=True)
class _Cut:
    """Something that is cut in equal parts.

    Attributes:
        what: For people, in the plural.
        count: How many there are.
        option: Of which the number of parts comes.
        ways: The number of parts.
        component: Whose weights it belongs to, where their format has a say.
        rows, columns: Numbers of a weight for each of them, in rows and in columns of matrices; 0 where none is cut.
    """

    what: str
    count: int
    option: str
    ways: int
    component: Component | None = None
    rows: int = 0
    columns: int = 0


def check_layout(config: ModelConfig, recipe: Recipe, layout: Layout) -> None:
    """Raises RequestError for a layout that does not divide the model, or cuts through its groups or blocks."""
    if layout.pp > config.num_hidden_layers:
        raise RequestError(
            f"--pp {layout.pp}", expected=f"at most the model's {config.num_hidden_layers} layers", got=str(layout.pp)
        )
    for cut in _cuts(config, layout):
        if cut.count % cut.ways:
            raise RequestError(
                f"{cut.option} = {cut.ways}", expected=f"a divisor of the model's {cut.count:,} {cut.what}",
                fix="Choose other values of --tp and --ep.",
            )  # fmt: skip
        if cut.ways > 1 and cut.component is not None:
            for component, scheme in recipe.schemes():
                if component == cut.component:
                    _check_scheme(cut, scheme)


def _cuts(config: ModelConfig, layout: Layout) -> Iterator[_Cut]:
    tp, both = "--tp", "--tp x --ep"
    yield _Cut("attention heads", config.num_attention_heads, tp, layout.tp, "attention", config.qk_head_dim)
    up = config.qk_nope_head_dim + config.v_head_dim
    yield _Cut("attention heads", config.num_attention_heads, tp, layout.tp, "attention", up, config.v_head_dim)
    if layout.ep > 1 and not config.n_routed_experts:
        raise RequestError(f"--ep {layout.ep}", expected="a model with routed experts", got="one without")
    if config.n_routed_experts:
        width, experts = config.moe_intermediate_size, config.n_routed_experts
        yield _Cut("routed experts", experts, "--ep", layout.ep)
        yield _Cut("numbers of a routed expert's width", width, tp, layout.tp, "routed_experts", 1, 1)
        if config.n_shared_experts:
            shared = width * config.n_shared_experts
            yield _Cut("numbers of the shared experts' width", shared, both, layout.stage, "shared_experts", 1, 1)
    if any(not config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        dense = config.intermediate_size
        yield _Cut("numbers of the dense layers' width", dense, both, layout.stage, "dense_mlp", 1, 1)
    yield _Cut("tokens of the vocabulary", config.vocab_size, both, layout.stage, "head", 1)


def _check_scheme(cut: _Cut, scheme: Scheme) -> None:
    size = cut.count // cut.ways
    if scheme.format == "fp8":
        for numbers in (cut.rows, cut.columns):
            if numbers and not _within_blocks(size * numbers, cut.ways):
                _refuse(cut, size * numbers, f"FP8's blocks of {FP8_BLOCK}")
    elif scheme.format in ("int8", "int4"):
        group = scheme.group_size or CHANNEL_GROUP
        if cut.columns and size * cut.columns % group:
            _refuse(cut, size * cut.columns, f"the {scheme.format} scheme's groups of {group}")


def _within_blocks(size: int, ways: int) -> bool:
    """Whether each part of `size` numbers begins with a block, or lies within one."""
    return all(begin % FP8_BLOCK == 0 or begin % FP8_BLOCK + size <= FP8_BLOCK for begin in range(0, size * ways, size))


def _refuse(cut: _Cut, size: int, units: str) -> None:
    raise RequestError(
        f"{cut.option} = {cut.ways}", expected=f"parts of the {cut.component} that do not cut through {units}",
        got=f"{size:,} numbers of {size * cut.ways:,}",
        fix="Choose other values of --tp and --ep, or another format in a recipe.",
    )  # fmt: skip


def stage_layers(config: ModelConfig, recipe: Recipe, layout: Layout) -> list[range]:
    """The layers of each pipeline stage, so that the largest stage has as few bytes of weights as possible.

    The first stage has the embedding, which all of its ranks hold; the last one the head and, where the model has
    one, the MTP layer (taken to be as large as the last decoder layer) with an embedding and a head of its own.
    """
    sizes: dict[int, int] = {}
    outer: dict[str, int] = {}
    for (part, layer), size in weight_bytes_by_layer(config, recipe).items():
        if layer is None:
            outer[part] = size
        else:
            sizes[layer] = sizes.get(layer, 0) + size
    before, after = outer["embedding"] * layout.stage, outer["head"]
    costs = [sizes[layer] for layer in range(config.num_hidden_layers)]
    if config.num_nextn_predict_layers:
        after += before + outer["head"] + costs[-1]
    return _balanced(costs, before, after, layout.pp)


def _balanced(costs: Sequence[int], before: int, after: int, parts: int) -> list[range]:
    """Cut into consecutive ranges, none empty, with the least largest sum."""
    low, high = max(costs), before + sum(costs) + after
    while low < high:
        middle = (low + high) // 2
        if _filled(costs, before, after, parts, middle) is None:
            low = middle + 1
        else:
            high = middle
    found = _filled(costs, before, after, parts, high)
    assert found is not None
    return found


def _filled(costs: Sequence[int], before: int, after: int, parts: int, limit: int) -> list[range] | None:
    """Ranges from the end of the sequence on, each as long as `limit` allows, but leaving one item for each other."""
    ranges: list[range] = []
    end = len(costs)
    for part in reversed(range(parts)):
        begin, held = end, after if part == parts - 1 else 0
        while begin > part and (begin == end or held + costs[begin - 1] <= limit):
            begin -= 1
            held += costs[begin]
        if held + (before if part == 0 else 0) > limit:
            return None
        ranges.insert(0, range(begin, end))
        end = begin
    return ranges if end == 0 else None
