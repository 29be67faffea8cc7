"""How one component's weights are stored and multiplied; the table of what can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from dsv3export.config.json_file import shown
from dsv3export.errors import UserError

Component = Literal["attention", "dense_mlp", "shared_experts", "routed_experts", "head", "embedding"]
Precision = Literal["fp32", "bf16", "fp8", "int8", "int4"]
Format = Literal["fp32", "bf16", "f16", "fp8", "int8", "int4"]
Activations = Literal["none", "1x128", "int8"]
Method = Literal["rtn", "mse", "gptq"]
# What the latent cache is kept in; `dsv3export.runtime.latent_cache` says how.
CacheFormat = Literal["fp32", "bf16", "f16", "fp8"]

COMPONENTS: tuple[Component, ...] = get_args(Component)
# Those that every decoder layer may have; the others exist once in a model.
LAYER_COMPONENTS: tuple[Component, ...] = ("attention", "dense_mlp", "shared_experts", "routed_experts")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CACHE_FORMATS: tuple[CacheFormat, ...] = get_args(CacheFormat)

CHANNEL = "channel"
Option = int | str  # bool is an int

# Format -> the keys that it takes -> the values of each, the default first.
OPTIONS: Mapping[Format, Mapping[str, tuple[Option, ...]]] = {
    "fp32": {},
    "bf16": {},
    "f16": {},
    "fp8": {"activations": ("none", "1x128")},
    "int8": {
        "group_size": (128, 64, 32, CHANNEL),
        "symmetric": (True, False),
        "activations": ("int8", "none"),
        "method": ("rtn", "mse", "gptq"),
    },
    "int4": {
        "group_size": (128, 64, 32),
        "symmetric": (True, False),
        "activations": ("int8", "none"),
        "method": ("mse", "rtn", "gptq"),
    },
}
# A table of which rows are looked up is no matrix to multiply with: it has neither blocks nor groups.
FORMATS: Mapping[Component, tuple[Format, ...]] = {
    **dict.fromkeys(COMPONENTS, get_args(Format)),
    "embedding": ("fp32", "bf16", "f16"),
}


class RecipeError(UserError):
    """A recipe asks for something that does not exist."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of a component are stored.

    Attributes:
        format: fp32, bf16, f16: plain numbers, computed with in float32. fp8: e4m3 in blocks of 128 x 128 with a
            float32 scale each. int8, int4: integers in groups of columns, or in rows, with a float32 scale each.
        group_size: Columns that share a scale (and a zero point); None for a whole row. Of int8 and int4 only.
        symmetric: Whether the zero point is the middle of the integers' range. Of int8 and int4 only.
        activations: What the activations are rounded to before the product: "none", "1x128" (fp8 only: e4m3 in
            groups of 128 with scales computed at run time), "int8" (int8 and int4 only).
        method: How integers are chosen: "rtn" rounds to the nearest, "mse" also searches the scale with the least
            squared error, "gptq" minimises the error of the outputs on a calibration text.

    Raises RecipeError for a combination that does not exist.
    """

    format: Format
    group_size: int | None = None
    symmetric: bool = True
    activations: Activations = "none"
    method: Method = "rtn"

    def __post_init__(self) -> None:
        check_choice("scheme: format", self.format, tuple(OPTIONS))
        chosen = self._spelled()
        for key, default in _NOT_APPLICABLE.items():
            if key in OPTIONS[self.format] or chosen[key] != default:
                check_option(f"scheme: {key}", self.format, key, chosen[key])

    @classmethod
    def of(cls, format: Format, options: Mapping[str, Option] | None = None, calibrated: bool = False) -> Scheme:
        """A format with its defaults, but for `options`, spelled as in a recipe file (see `OPTIONS`).

        Where there is a calibration text (`calibrated`), the default method of integer formats is gptq.
        """
        values = {key: allowed[0] for key, allowed in OPTIONS[format].items()}
        if calibrated and "method" in values:
            values["method"] = "gptq"
        values |= dict(options or {})
        group_size = values.get("group_size", CHANNEL)
        return cls(
            format,
            None if group_size == CHANNEL else cast("int", group_size),
            cast("bool", values.get("symmetric", True)),
            cast("Activations", values.get("activations", "none")),
            cast("Method", values.get("method", "rtn")),
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether the weights cannot be chosen without activations of a calibration text."""
        return self.method == "gptq"

    def without_calibration(self) -> Scheme:
        """The same by the default method of its format, where its own needs a calibration text."""
        if not self.needs_calibration:
            return self
        return replace(self, method=cast("Method", OPTIONS[self.format]["method"][0]))

    def options(self) -> dict[str, Option]:
        """The keys that belong to the format, spelled as in a recipe file; ``Scheme.of`` takes them back."""
        return {key: value for key, value in self._spelled().items() if key in OPTIONS[self.format]}

    def describe(self) -> str:
        """For people: ``int4, groups of 128, symmetric, mse, activations int8``."""
        parts: list[str] = [self.format]
        if self.format == "fp8":
            parts.append("blocks of 128 x 128")
        if "group_size" in OPTIONS[self.format]:
            parts.append("per channel" if self.group_size is None else f"groups of {self.group_size}")
            parts += ["symmetric" if self.symmetric else "asymmetric", self.method]
        if self.activations != "none":
            parts.append(f"activations {'fp8 in groups of 1 x 128' if self.activations == '1x128' else 'int8'}")
        return ", ".join(parts)

    def _spelled(self) -> dict[str, Option]:
        return {
            "group_size": CHANNEL if self.group_size is None else self.group_size,
            "symmetric": self.symmetric,
            "activations": self.activations,
            "method": self.method,
        }


# What a scheme holds for the keys that its format does not take.
_NOT_APPLICABLE: Mapping[str, Option] = {
    "group_size": CHANNEL,
    "symmetric": True,
    "activations": "none",
    "method": "rtn",
}
OPTION_KEYS = tuple(_NOT_APPLICABLE)


def check_option(where: str, format: Format, key: str, value: object) -> Option:
    """`value` if the format takes it under `key`; otherwise RecipeError, which `where` begins."""
    options = OPTIONS[format]
    if key not in options:
        takes = ", ".join(options) or "none"
        expected = f"no such key with format {shown(format)} (its keys: {takes})"
        raise RecipeError(where, expected=expected, got=shown(value))
    return check_choice(where, value, options[key])


def check_choice(where: str, value: object, allowed: tuple[Option, ...]) -> Option:
    """`value` if it is one of `allowed`, in type too (1 is not true); otherwise RecipeError."""
    for choice in allowed:
        if type(value) is type(choice) and value == choice:
            return choice
    raise RecipeError(where, expected=" or ".join(shown(choice) for choice in allowed), got=shown(value))
