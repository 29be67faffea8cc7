from __future__ import annotations

import numpy as np
import pytest

from dsv3export.config import ModelConfig
from dsv3export.dtypes import NUMPY
from dsv3export.errors import InternalError, ResourceError
from dsv3export.presets import preset
from dsv3export.recipe import CACHE_FORMATS, CacheFormat
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from tests.support.synthetic import tiny_config

# Bytes per token and layer of DeepSeek-V3, where Dc = 512 and Dr = 64.
V3_ROW = {"fp32": 4 * 576, "bf16": 2 * 576, "f16": 2 * 576, "fp8": 512 + 2 * 64 + 2 * 4}


@pytest.mark.parametrize("format", CACHE_FORMATS)
def test_holds_exactly_the_latents(format: CacheFormat) -> None:
    layout = CacheLayout.of(format, preset("deepseek_v3"), layers=4)
    cache = LatentCache(layout, slots=3, capacity=100)
    assert layout.bytes_per_token == 4 * V3_ROW[format]
    assert cache.nbytes == 3 * 100 * layout.bytes_per_token
    assert cache.lengths.tolist() == [0, 0, 0]
    assert cache.view(0, range(3)).shape == (3, 100, 512 if format == "fp8" else 576)


def test_the_layers_of_the_trunk() -> None:
    layouts = [CacheLayout.of(format, preset("deepseek_v3")) for format in CACHE_FORMATS]
    assert [layout.bytes_per_token for layout in layouts] == [140_544, 70_272, 70_272, 39_528]


@pytest.mark.parametrize(("latent", "groups"), [(512, 4), (128, 1), (20, 1), (200, 1), (1, 1)])
def test_an_odd_width_has_one_scale(latent: int, groups: int) -> None:
    config = ModelConfig.from_dict(tiny_config(kv_lora_rank=latent))
    assert CacheLayout.of("fp8", config).side_width == config.qk_rope_head_dim + groups


@pytest.mark.parametrize("layout", [CacheLayout(1, 6), CacheLayout(1, 6, "BF16"), CacheLayout(1, 6, "F8_E4M3", 6)])
def test_a_view_is_contiguous_and_shares_memory(layout: CacheLayout) -> None:
    cache = LatentCache(layout, slots=4, capacity=5)
    view = cache.view(0, range(1, 3))
    assert view.dtype == NUMPY[layout.dtype] and view.flags.c_contiguous
    view[:] = 1
    assert cache.view(0, range(4)).astype(np.float32).sum(axis=(1, 2)).tolist() == [0, 30, 30, 0]
    if layout.side_width:
        cache.side(0, range(3, 4))[:] = 2
        assert cache.side(0, range(4)).astype(np.float32).sum(axis=(1, 2)).tolist() == [0, 0, 0, 60]


def test_views_by_the_names_of_a_graph() -> None:
    """In pairs where a layer has two arrays; the layer of a draft counts on behind those of the trunk."""
    cache = LatentCache(CacheLayout(2, 6, "F8_E4M3", 3), slots=4, capacity=5)
    views = dict(cache.inputs(range(1, 3), first_layer=7))
    assert list(views) == ["latent_cache.7", "latent_cache.7.side", "latent_cache.8", "latent_cache.8.side"]
    assert [view.shape for view in views.values()] == [(2, 5, 6), (2, 5, 3)] * 2
    views["latent_cache.8.side"][0] = 1
    assert cache.side(1, range(1, 2)).astype(np.float32).sum() == 15
    assert list(dict(LatentCache(CacheLayout(2, 6), 1, 5).inputs(range(1)))) == ["latent_cache.0", "latent_cache.1"]


@pytest.mark.parametrize("slots", [range(0), range(2, 5), range(0, 4, 2), range(-1, 2)])
def test_other_ranges_are_refused(slots: range) -> None:
    with pytest.raises(InternalError, match="range"):
        LatentCache(CacheLayout(1, 6), slots=4, capacity=5).view(0, slots)


@pytest.mark.parametrize("capacity", [2**40, 2**62])
def test_too_large_a_cache_is_a_resource_error(capacity: int) -> None:
    with pytest.raises(ResourceError, match="not enough memory for a latent cache of 16 x"):
        LatentCache(CacheLayout(61, 576), slots=16, capacity=capacity)
