"""The feed-forward parts: SwiGLU MLP and DeepSeekMoE (DeepSeek-V3 paper, section 2.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dsv3export.config import ModelConfig
from dsv3export.plugins.moe_experts.op import moe_experts
from dsv3export.plugins.moe_route.op import moe_route
from dsv3export.reference.layers import Linear


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Scores in float32, whatever the rest of the model uses."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size), requires_grad=False)
        if config.has_router_bias:
            self.e_score_correction_bias = nn.Parameter(torch.empty(experts), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> ids [T, k], weights [T, k]."""
        c = self.config
        logits = torch.ops.dsv3.linear(x, self.weight)
        bias = self.e_score_correction_bias if c.has_router_bias else torch.zeros(self.weight.shape[0])
        grouped = c.topk_method != "greedy"
        ids, weights = moe_route(
            logits,
            bias,
            k=c.num_experts_per_tok,
            n_group=c.n_group if grouped else 1,
            topk_group=c.topk_group if grouped else 1,
            group_top=2 if c.topk_method == "noaux_tc" else 1,
            scoring=c.scoring_func,
            normalize=int(c.norm_topk_prob),
            scaling=c.routed_scaling_factor,
        )
        return ids, weights


class Experts(nn.Module):
    """The routed experts' weights as banks; the checkpoint holds one tensor per expert and projection."""

    def __init__(self, experts: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, intermediate, hidden), requires_grad=False)
        self.up_proj = nn.Parameter(torch.empty(experts, intermediate, hidden), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, intermediate), requires_grad=False)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = moe_experts(x, ids, weights, self.gate_proj, self.up_proj, self.down_proj)
        return out


class MoE(nn.Module):
    """Routed experts plus the shared ones, which are one MLP of n_shared_experts times the width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, config.hidden_size, width)
        self.shared = config.n_shared_experts > 0
        if self.shared:
            self.shared_experts = Mlp(config.hidden_size, width * config.n_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        ids, weights = self.gate(tokens)
        routed: Tensor = self.experts(tokens, ids, weights).view_as(x)
        return routed + self.shared_experts(x) if self.shared else routed
