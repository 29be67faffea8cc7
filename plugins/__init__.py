"""The dsv3 ops, one folder each: schema, torch custom op, ONNX function body, and (per backend) kernels and plugins.

`OPS` maps the ONNX op type in the domain ``dsv3`` to its `Op`. Adding an op is adding a folder and a line here.
`SHARD_OPS` are those that no trace makes, only the pass that cuts a graph over several ranks; `ALL_OPS` has both.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

if __name__ != "dsv3export.plugins":
    raise ImportError(f"import this package as 'dsv3export.plugins', not as {__name__!r}")

from dsv3export.plugins.all_reduce.op import ALL_REDUCE
from dsv3export.plugins.expert_combine.op import EXPERT_COMBINE
from dsv3export.plugins.expert_dispatch.op import EXPERT_DISPATCH
from dsv3export.plugins.gather_columns.op import GATHER_COLUMNS
from dsv3export.plugins.latent_append.op import LATENT_APPEND
from dsv3export.plugins.latent_append_fp8.op import LATENT_APPEND_FP8
from dsv3export.plugins.latent_append_half.op import LATENT_APPEND_HALF
from dsv3export.plugins.linear.op import LINEAR
from dsv3export.plugins.linear_fp8_block.op import LINEAR_FP8_BLOCK
from dsv3export.plugins.linear_int.op import LINEAR_INT
from dsv3export.plugins.mla_attention.op import MLA_ATTENTION
from dsv3export.plugins.mla_attention_fp8_block.op import MLA_ATTENTION_FP8_BLOCK
from dsv3export.plugins.mla_attention_int.op import MLA_ATTENTION_INT
from dsv3export.plugins.moe_experts.op import MOE_EXPERTS
from dsv3export.plugins.moe_experts_fp8_block.op import MOE_EXPERTS_FP8_BLOCK
from dsv3export.plugins.moe_experts_int.op import MOE_EXPERTS_INT
from dsv3export.plugins.moe_route.op import MOE_ROUTE
from dsv3export.plugins.registry import DOMAIN, DOMAIN_VERSION, Op, by_name

OPS = by_name(
    [
        LINEAR,
        LINEAR_INT,
        LINEAR_FP8_BLOCK,
        LATENT_APPEND,
        LATENT_APPEND_HALF,
        LATENT_APPEND_FP8,
        MLA_ATTENTION,
        MLA_ATTENTION_INT,
        MLA_ATTENTION_FP8_BLOCK,
        MOE_ROUTE,
        MOE_EXPERTS,
        MOE_EXPERTS_INT,
        MOE_EXPERTS_FP8_BLOCK,
    ]
)
SHARD_OPS = by_name([ALL_REDUCE, GATHER_COLUMNS, EXPERT_DISPATCH, EXPERT_COMBINE])
# Where a graph is cut: a communicator does these between two segments.
COLLECTIVES = frozenset({ALL_REDUCE.name, GATHER_COLUMNS.name})
ALL_OPS: Mapping[str, Op] = ChainMap(OPS, SHARD_OPS)

__all__ = ["ALL_OPS", "COLLECTIVES", "DOMAIN", "DOMAIN_VERSION", "OPS", "SHARD_OPS", "Op"]
