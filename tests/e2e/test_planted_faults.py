"""Programs that are wrong on purpose, each in one place: the diff names that place as the first fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from dsv3export.checkpoint import Checkpoint
from dsv3export.compare import LayerDiff, Stage, diff_layers
from dsv3export.graphs import graph_for
from dsv3export.graphs.capture import ExecutorStages
from dsv3export.plugins import OPS
from dsv3export.recipe import Recipe
from tests.e2e.goldens import Golden

TOLERANCE = 1e-4
Patch = pytest.MonkeyPatch
Wrong = Callable[[Patch, Golden], None]
WrongWeight = Callable[[str, Tensor], Tensor]


class Faulty:
    """A model whose program is altered while it runs, and only then."""

    def __init__(self, model: ExecutorStages, wrong: Wrong, golden: Golden) -> None:
        self._model, self._wrong, self._golden = model, wrong, golden
        self.label, self.config, self.stages = "wrong", model.config, model.stages

    @contextmanager
    def open(self, stage: str) -> Iterator[Stage]:
        with self._model.open(stage) as inner:
            yield _FaultyStage(inner, self._altered)

    @contextmanager
    def _altered(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            self._wrong(patch, self._golden)
            yield


class _FaultyStage:
    def __init__(self, inner: Stage, altered: Callable[[], AbstractContextManager[None]]) -> None:
        self._inner, self._altered = inner, altered
        self.output, self.router_bias = inner.output, inner.router_bias

    def run(self, prompt: int, hidden: Any = None) -> Mapping[str, Any]:
        with self._altered():
            return self._inner.run(prompt, hidden)


def prompts_of(golden: Golden) -> list[list[int]]:
    return [golden.ids(prompt)[:24] for prompt in (3, 5)]


def stages(golden: Golden, recipe: str = "fp32") -> ExecutorStages:
    return ExecutorStages(Checkpoint.open(golden.checkpoint), prompts_of(golden), Recipe.for_precision(recipe))


def diff(golden: Golden, got: Any, recipe: str = "fp32") -> LayerDiff:
    return diff_layers(stages(golden, recipe), got, len(prompts_of(golden)), TOLERANCE)


def assert_first_fault(found: LayerDiff, name: str, metric: str) -> None:
    fault = found.first_fault
    assert fault is not None
    assert (fault.name, metric in fault.metric) == (name, True), fault
    assert fault.expected != fault.got
    assert fault.value > fault.bound


# --- ops that compute something else ---------------------------------------------------------------------------------


def kernel(op: str, wrong: Callable[..., Any]) -> Wrong:
    """`wrong(right, *arguments)` in the place of an op's kernel."""

    def apply(patch: Patch, golden: Golden) -> None:
        right = OPS[op].kernel
        patch.setitem(OPS, op, dataclasses.replace(OPS[op], kernel=lambda *a: wrong(right, *a)))

    return apply


def biased_weights(right: Any, logits: Tensor, bias: Tensor, *rest: Any) -> Any:
    ids, _ = right(logits, bias, *rest)
    weights = (logits.sigmoid() + bias).gather(1, ids)
    return ids, weights / weights.sum(dim=1, keepdim=True) * rest[-1]


def second_best(right: Any, logits: Tensor, bias: Tensor, k: int, *rest: Any) -> Any:
    """The best expert is passed over."""
    ids, weights = right(logits, bias, k + 1, *rest)
    return ids[:, 1:].contiguous(), weights[:, 1:].contiguous()


def acausal(right: Any, q_nope: Tensor, q_pe: Tensor, cache: Tensor, kv_b: Tensor, start: Tensor, scale: float) -> Any:
    """Every token sees one position too many."""
    longer = torch.cat([cache, cache[:, -1:]], dim=1)
    return torch.cat(
        [
            right(q_nope[:, s : s + 1], q_pe[:, s : s + 1], longer, kv_b, start + s + 1, scale)
            for s in range(q_nope.shape[1])
        ],
        dim=1,
    )


def appended_late(right: Any, cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    return right(cache, kv_c, k_pe, start).roll(1, dims=1)


def stale_row(right: Any, cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    """The row of the third token is that of a sequence that had the slot before."""
    updated: Tensor = right(cache, kv_c, k_pe, start)
    updated[:, 2] = 0.5
    return updated


def without_shared_key(right: Any, cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    result: Tensor = right(cache, kv_c, torch.zeros_like(k_pe), start)
    return result


def one_token_lost(right: Any, x: Tensor, ids: Tensor, weights: Tensor, *banks: Tensor) -> Tensor:
    """The last token's last expert is left out."""
    fewer = weights.clone()
    fewer[-1, -1] = 0
    result: Tensor = right(x, ids, fewer, *banks)
    return result


def half_precision(right: Any, x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = right(x.to(torch.bfloat16).to(torch.float32), weight)
    return result


def with_options(**changed: Any) -> Callable[..., Any]:
    """MoERoute with other attributes."""
    names = [attribute.name for attribute in OPS["MoERoute"].attributes]

    def wrong(right: Any, logits: Tensor, bias: Tensor, *attributes: Any) -> Any:
        given = dict(zip(names, attributes, strict=True)) | changed
        return right(logits, bias, *given.values())

    return wrong


FIRST_ROUTER, FIRST_ATTENTION = "layers.1.mlp.gate", "layers.0.self_attn"
WRONG_KERNELS: dict[str, tuple[Wrong, str, str]] = {
    "softmax scale without mscale squared": (
        kernel("MlaAttention", lambda right, *a: right(*a[:-1], (64 + 32) ** -0.5)),
        f"{FIRST_ATTENTION}.mla_attention",
        "relative",
    ),
    "attention sees one position ahead": (kernel("MlaAttention", acausal), f"{FIRST_ATTENTION}.mla_attention", "row"),
    "start ignored by one": (
        kernel("MlaAttention", lambda right, *a: right(*a[:-2], a[-2] + 1, a[-1])),
        f"{FIRST_ATTENTION}.mla_attention",
        "row",
    ),
    "cache written one row late": (kernel("LatentAppend", appended_late), f"{FIRST_ATTENTION}.latent_append", "row"),
    "stale row in a slot": (kernel("LatentAppend", stale_row), f"{FIRST_ATTENTION}.latent_append", "row"),
    "shared key not cached": (kernel("LatentAppend", without_shared_key), f"{FIRST_ATTENTION}.latent_append", "row"),
    "bias takes part in the weights": (kernel("MoERoute", biased_weights), f"{FIRST_ROUTER}.weights", "row"),
    "bias ignored": (
        kernel("MoERoute", lambda right, logits, bias, *a: right(logits, bias * 0, *a)),
        f"{FIRST_ROUTER}.ids",
        "unexplained router flip",
    ),
    "weights not renormalised": (kernel("MoERoute", with_options(normalize=0)), f"{FIRST_ROUTER}.weights", "row"),
    "routed_scaling_factor left out": (kernel("MoERoute", with_options(scaling=1.0)), f"{FIRST_ROUTER}.weights", "row"),
    "group limit ignored": (
        kernel("MoERoute", with_options(n_group=1, topk_group=1)),
        f"{FIRST_ROUTER}.ids",
        "unexplained router flip",
    ),
    "group score of one best": (kernel("MoERoute", with_options(group_top=1)), f"{FIRST_ROUTER}.ids", "unexplained"),
    "top-k off by one": (kernel("MoERoute", second_best), f"{FIRST_ROUTER}.ids", "unexplained router flip"),
    "one expert too few": (kernel("MoERoute", with_options(k=3)), f"{FIRST_ROUTER}.ids", "shape"),
    "one token's expert lost": (kernel("MoEExperts", one_token_lost), "layers.1.mlp.experts", "row"),
    "activations rounded to bfloat16": (kernel("Linear", half_precision), f"{FIRST_ATTENTION}.q_a_proj", "row"),
}


@pytest.mark.parametrize("name", WRONG_KERNELS)
def test_a_wrong_kernel(name: str, bf16_golden: Golden) -> None:
    wrong, place, metric = WRONG_KERNELS[name]
    assert_first_fault(diff(bf16_golden, Faulty(stages(bf16_golden), wrong, bf16_golden)), place, metric)


# --- graphs that say something else ----------------------------------------------------------------------------------


def with_attribute(op_type: str, name: str, value: Any) -> Callable[[ir.Model], None]:
    def alter(model: ir.Model) -> None:
        found = [node for function in model.functions.values() for node in function if node.op_type == op_type]
        assert found
        for node in found:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return alter


def with_input(value: str, place: int, other: str) -> Callable[[ir.Model], None]:
    """The node that computes `value` takes `other` as its input number `place`, where a layer kind has both."""

    def alter(model: ir.Model) -> None:
        for function in model.functions.values():
            by_name = {str(each.name): each for node in function for each in node.outputs}
            by_name |= {str(each.name): each for each in function.inputs}
            if value in by_name and other in by_name:
                node = by_name[value].producer()
                assert node is not None
                node.replace_input_with(place, by_name[other])

    return alter


def with_result(kind: str, place: int, other: str) -> Callable[[ir.Model], None]:
    """A layer kind hands out its value or input `other` as its result number `place`."""

    def alter(model: ir.Model) -> None:
        for function in model.functions.values():
            if function.name == kind:
                function.outputs[place] = next(value for value in function.inputs if value.name == other)

    return alter


def with_inputs_swapped(first: str, second: str | None) -> Callable[[ir.Model], None]:
    """The nodes that compute two values take each other's first input; one alone has its first two swapped."""

    def alter(model: ir.Model) -> None:
        for function in model.functions.values():
            by_name = {str(value.name): node for node in function for value in node.outputs}
            if first not in by_name or (second is not None and second not in by_name):
                continue
            places = [(by_name[first], 0), (by_name[first], 1) if second is None else (by_name[second], 0)]
            values = [node.inputs[place] for node, place in places]
            for (node, place), value in zip(places, reversed(values), strict=True):
                node.replace_input_with(place, value)

    return alter


WRONG_GRAPHS: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "rotary pairs half a head apart": (
        with_attribute("RotaryEmbedding", "interleaved", 0),
        f"{FIRST_ATTENTION}.rotary_embedding",
    ),
    "another epsilon in the norms": (with_attribute("RMSNormalization", "epsilon", 1e-2), "layers.0.input_layernorm"),
    "no residual around the attention": (with_input("add", 0, "self_attn.o_proj"), "layers.0.add"),
    "router sees the residual stream": (with_input("mlp.reshape", 0, "add"), "layers.1.mlp.reshape"),
    "shared experts counted twice": (with_input("mlp.add", 0, "mlp.shared_experts.down_proj"), "layers.1.mlp.add"),
    "head without the final norm": (with_input("reshape", 0, "hidden"), "reshape"),
    "keys without their norm": (
        with_input("self_attn.latent_append", 1, "self_attn.split.0_2"),
        f"{FIRST_ATTENTION}.latent_append",
    ),
    "hidden state before the final norm for the MTP layer": (with_result("head", 1, "hidden"), "final_hidden"),
    "MTP norms in each other's place": (with_inputs_swapped("enorm", "hnorm"), "layers.4.enorm"),
    "MTP halves in the other order": (with_inputs_swapped("concat", None), "layers.4.concat"),
    "SiLU left out": (with_input("mlp.mul", 0, "mlp.gate_proj"), "layers.0.mlp.mul"),
}


@pytest.mark.parametrize("name", WRONG_GRAPHS)
def test_a_wrong_graph(name: str, bf16_golden: Golden, monkeypatch: Patch) -> None:
    alter, place = WRONG_GRAPHS[name]
    right = stages(bf16_golden)

    def altered(*arguments: Any) -> ir.Model:
        model = graph_for(*arguments)
        alter(model)
        return model

    monkeypatch.setattr("dsv3export.graphs.executor.graph_for", altered)
    wrong = stages(bf16_golden)
    found = diff_layers(right, wrong, len(prompts_of(bf16_golden)), TOLERANCE)
    assert_first_fault(found, place, "relative error of a row")


# --- weights that are something else ---------------------------------------------------------------------------------


def nibbles_swapped(packed: Tensor) -> Tensor:
    return (packed << 4) | (packed >> 4)


def of(part: str, change: Callable[[Tensor], Tensor]) -> WrongWeight:
    """A change of each weight whose name has `part` in it."""
    return lambda name, weight: change(weight) if part in name else weight


def experts_of(bank: Tensor, first: int, second: int) -> Tensor:
    """Two experts of a bank change places."""
    order = list(range(len(bank)))
    order[first], order[second] = second, first
    return bank[order]


def one_nan(bank: Tensor) -> Tensor:
    damaged = bank.clone()
    damaged[:, 0, 0] = float("nan")
    return damaged


KV_A_SCALE = "layers.2.self_attn.kv_a_proj_with_mqa.weight_scale_inv"
WRONG_WEIGHTS: dict[str, tuple[str, WrongWeight, str]] = {
    "experts permuted in one bank": (
        "fp32", of("layers.2.mlp.experts.up_proj", lambda bank: experts_of(bank, 3, 4)), "layers.2.mlp.experts",
    ),
    "columns of one expert permuted": (
        "fp32", of("layers.3.mlp.experts.down_proj", lambda bank: bank.flip(2)), "layers.3.mlp.experts",
    ),
    "NaN in a weight": ("fp32", of("layers.3.mlp.experts.gate_proj", one_nan), "layers.3.mlp.experts"),
    "frequencies not stretched by YaRN": (
        "fp32", of("inverse_frequencies", lambda f: 10000.0 ** (-torch.arange(len(f)) / len(f))), "rotary.mul",
    ),
    "key and value parts of kv_b swapped": (
        "fp32",
        of("layers.1.self_attn.kv_b_proj", lambda w: w.view(4, 2, 64, -1).flip(1).reshape(w.shape)),
        "layers.1.self_attn.mla_attention",
    ),
    "FP8 scale inverted": ("fp8", of(KV_A_SCALE, lambda scale: 1 / scale), "layers.2.self_attn.kv_a_proj_with_mqa"),
    "block scales transposed": (
        "fp8",
        of("layers.2.self_attn.o_proj.weight_scale_inv", lambda scale: scale.T.contiguous()),
        "layers.2.self_attn.o_proj",
    ),
    "ragged block off by one": (
        "fp8", of(KV_A_SCALE, lambda scale: scale.roll(1, 0)), "layers.2.self_attn.kv_a_proj_with_mqa",
    ),
    "int4 nibbles swapped": (
        "int4", of("layers.1.mlp.shared_experts.up_proj.weight.q", nibbles_swapped),
        "layers.1.mlp.shared_experts.up_proj",
    ),
    "int8 scales of another group": (
        "int8", of("layers.2.self_attn.q_a_proj.weight.scale", lambda scale: scale.roll(1, 1)),
        "layers.2.self_attn.q_a_proj",
    ),
}  # fmt: skip


class AlteredWeights:
    """The weights of `inner`, changed by `wrong`; asked for one of `renamed`, another one."""

    def __init__(self, inner: Any, wrong: WrongWeight, renamed: Mapping[str, str] | None = None) -> None:
        self._inner, self._wrong, self._renamed = inner, wrong, renamed or {}

    def __getitem__(self, name: str) -> Tensor:
        return self._wrong(name, self._inner[self._renamed.get(name, name)])

    def forget(self) -> None:
        self._inner.forget()


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_a_wrong_weight(name: str, fp8_golden: Golden, monkeypatch: Patch) -> None:
    recipe, alter, place = WRONG_WEIGHTS[name]
    wrong = stages(fp8_golden, recipe)
    monkeypatch.setattr(wrong, "_weights", AlteredWeights(wrong._weights, alter))
    assert_first_fault(diff(fp8_golden, wrong, recipe), place, "relative error of a row")


@pytest.mark.parametrize(
    ("mlp", "place"),
    [
        ("layers.2.mlp.experts.{}_proj", "layers.2.mlp.experts"),
        ("layers.0.mlp.{}_proj.weight", "layers.0.mlp.gate_proj"),
    ],
)
def test_gate_and_up_in_each_others_place(mlp: str, place: str, bf16_golden: Golden) -> None:
    gate, up = (f"model.{mlp.format(part)}" for part in ("gate", "up"))
    wrong = stages(bf16_golden)
    wrong._weights = AlteredWeights(wrong._weights, lambda _, w: w, {gate: up, up: gate})  # type: ignore[assignment]
    assert_first_fault(diff(bf16_golden, wrong), place, "relative error of a row")


@pytest.mark.parametrize("recipe", ["fp32", "fp8", "int8", "int4"])
def test_the_right_program_has_no_fault(recipe: str, fp8_golden: Golden) -> None:
    found = diff(fp8_golden, stages(fp8_golden, recipe), recipe)
    assert found.first_fault is None
    assert found.only_expected == found.only_got == ()
    assert all(value.injected.max_abs == value.propagated.max_abs == 0 for value in found.values)
    assert len(found.values) > 100


def test_errors_grow_in_the_propagated_run_only(bf16_golden: Golden) -> None:
    """A fault in layer 1: the layers behind it are right on the right input, and wrong on what they are given."""
    wrong = stages(bf16_golden)
    wrong._weights = AlteredWeights(  # type: ignore[assignment]
        wrong._weights, of("layers.1.mlp.experts.up_proj", lambda bank: experts_of(bank, 3, 4))
    )
    found = diff(bf16_golden, wrong)
    by_name = {value.name: value for value in found.values}
    behind: Sequence[str] = ("layers.2", "layers.3", "lm_head")
    assert all(by_name[name].injected.max_abs == 0 for name in behind)
    assert all(by_name[name].propagated.relative > 1e-3 for name in behind)
    assert np.isclose(by_name["layers.1"].injected.relative, by_name["layers.1"].propagated.relative)
    assert found.logits.kl_mean > 0
