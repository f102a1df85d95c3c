"""hpcai's gpt in PyTorch, as its users write it: fused attention, one product for queries, keys and values."""

from __future__ import annotations

from typing import Any

from hpcai.train.options.options import Options


def torch_gpt(options: Options, initial: dict[str, Any]) -> Any:
    """The network with hpcai's initial parameters."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads = options.width, options.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            batch, context, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(batch, context, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(256, width), nn.Parameter(torch.zeros(options.context, width))
            self.blocks = nn.ModuleList([Block() for _ in range(options.layers)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

        def forward(self, x: Any) -> Any:
            hidden = self.token(x) + self.position
            for block in self.blocks:
                hidden = block(hidden)
            return self.head(self.norm(hidden))

    net = Gpt()
    with torch.no_grad():
        net.token.weight.copy_(initial["embedding.token"])
        net.position.copy_(initial["embedding.position"])
        for i, block in enumerate(net.blocks, start=1):
            for layer, name in (
                (block.norm1, "attention/norm"),
                (block.qkv, "attention/qkv"),
                (block.out, "attention/out"),
                (block.norm2, "hidden/norm"),
                (block.up, "hidden/up"),
                (block.down, "hidden/down"),
            ):
                weight = initial[f"block{i}/{name}.weight"]
                layer.weight.copy_(weight.T if name.endswith(("out", "down")) else weight)
                layer.bias.copy_(initial[f"block{i}/{name}.bias"])
        net.norm.weight.copy_(initial["head/norm.weight"])
        net.norm.bias.copy_(initial["head/norm.bias"])
        net.head.weight.copy_(initial["head.token"])
    return net
