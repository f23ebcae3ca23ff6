"""The transformer's blocks over a shared cache, with weights laid out for few rows.

The same numbers as `GPT.prefill` and `GPT.decode`, which stay the readable reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from editar.models.gpt import GPT, Block
from editar.models.rope import apply_rope, rope_table
from editar.sampling.engine.cache import BatchLayout, KVSegment, SharedCache, attend
from editar.sampling.engine.linear import Linear

BlockStep = Callable[..., torch.Tensor]


class FastBlock:
    """One transformer block; no dropout, whatever the module's mode."""

    def __init__(self, block: Block, linear: type[Linear]) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.heads, self.kv_heads, self.width = attention.heads, attention.kv_heads, attention.head_dim
        self.qkv, self.wo = linear(attention.wqkv.weight), linear(attention.wo.weight)
        self.w1, self.w3, self.w2 = (
            linear(module.weight) for module in (feed_forward.w1, feed_forward.w3, feed_forward.w2)
        )

    @property
    def bytes(self) -> int:
        return sum(matrix.bytes for matrix in (self.qkv, self.wo, self.w1, self.w3, self.w2))

    def project(
        self, x: torch.Tensor, rope: torch.Tensor, images: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (R, s, D) -> scaled query (I, Hkv, R / I, rep, s, hd), key and value (R * Hkv, s, hd).

        rope (s, hd/2, 2) for all rows or (R * s, hd/2, 2) for each.
        """
        rows, s, _ = x.shape
        heads = self.qkv(self.attention_norm(x)).view(rows, s, -1, self.width)
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        turned = apply_rope(qk.reshape(-1, len(rope), *qk.shape[2:]), rope).view(qk.shape)
        q, k = turned.split([self.heads, self.kv_heads], dim=2)
        q = q.view(images, rows // images, s, self.kv_heads, -1, self.width).permute(0, 3, 1, 4, 2, 5)
        k, v = (
            t.view(images, rows // images, s, self.kv_heads, self.width).permute(0, 3, 1, 2, 4).flatten(0, 2)
            for t in (k, v)
        )
        return torch.mul(q, self.width**-0.5).contiguous(), k, v

    def values(self, x: torch.Tensor, images: int) -> torch.Tensor:
        """x (R, s, D) -> values alone, (R * Hkv, s, hd), as `project` orders them."""
        weight = self.qkv.weight[-self.kv_heads * self.width :]
        v = F.linear(self.attention_norm(x), weight).view(images, -1, x.shape[1], self.kv_heads, self.width)
        return v.permute(0, 3, 1, 2, 4).flatten(0, 2)

    def expand_heads(self, values: torch.Tensor, images: int) -> torch.Tensor:
        """(R * Hkv, s, hd) -> as attention's result for every query head, (I, Hkv, R / I, rep, s, hd)."""
        shape = (images, self.kv_heads, -1, 1, *values.shape[1:])
        return values.view(shape).expand(-1, -1, -1, self.heads // self.kv_heads, -1, -1)

    def step(
        self,
        x: torch.Tensor,
        rope: torch.Tensor,
        images: int,
        prefix: list[KVSegment],
        target: KVSegment,
        slots: torch.Tensor,
        length: int,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Some target positions of each row, x (R, W, D): write their keys and values, read what is before them.

        rope (R * W, hd/2, 2) and slots (P * W,), the place of each key among the P * N of `target`, belong to
        those positions; `length` positions of `target` are looked at, through `mask` (see `attend`). `target` is
        flat, (P * N, hd): of a view made in here inductor would write the whole cache again in every layer.
        """
        q, k, v = self.project(x, rope, images)
        target.keys.index_copy_(0, slots, k.flatten(0, 1))
        target.values.index_copy_(0, slots, v.flatten(0, 1))
        past = (t.view(len(k), -1, self.width)[:, :length] for t in (target.keys, target.values))
        return self.finish(x, attend(q, [*prefix, KVSegment(*past)], mask))

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Residual stream x (R, s, D) and attention's result (I, Hkv, R / I, rep, s, hd) -> (R, s, D)."""
        x = self.wo.add(attended.permute(0, 2, 4, 1, 3, 5).reshape(x.shape), x)
        normed = self.ffn_norm(x)
        return self.w2.add(self.w3.mul(normed, self.w1.silu(normed)), x)


class FastGPT:
    """A GPT's weights as the engine reads them. `stale` tells when the model has changed since."""

    def __init__(self, model: GPT, linear: type[Linear] = Linear) -> None:
        self.cfg, self.model = model.cfg, model
        self.device, self.dtype = model.tok_embeddings.weight.device, model.tok_embeddings.weight.dtype
        self.blocks = [FastBlock(layer, linear) for layer in model.layers]  # type: ignore[arg-type]
        self.head = linear(model.output.weight)
        table = rope_table(self.cfg)
        self.zero_text = (table[self.cfg.source_tokens : self.cfg.prefix_tokens] == 0).flatten(1).all(1)  # (L,)
        self.rope = table.to(self.device)
        self.pos_embeddings: torch.Tensor | None = None  # (S, D), learned positions
        if self.cfg.rope.learned:
            self.pos_embeddings = model.pos_embeddings(0, self.cfg.sequence_tokens).detach().to(self.dtype)
        self._made_from = self._identity()

    @property
    def bytes(self) -> int:
        """Weights that one step reads."""
        return sum(block.bytes for block in self.blocks) + self.head.bytes

    @property
    def stale(self) -> bool:
        return self._made_from != self._identity()

    def _identity(self) -> list[tuple[int, int]]:
        return [(weight.data_ptr(), weight._version) for weight in self.model.state_dict(keep_vars=True).values()]

    def _placed(self, x: torch.Tensor, start: int) -> torch.Tensor:
        return x if self.pos_embeddings is None else x + self.pos_embeddings[start : start + x.shape[1]]

    def prefill(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        layout: BatchLayout,
        cache: SharedCache,
        drop_image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Source codes (I, K N), text (I, L, C) -> logits of target code 0, (I * branches, V) float32.

        The source images are read once for both branches; the second branch reads the null text.
        """
        image = self.model.embed_images(source_codes, drop_image)  # (I, K N, D)
        caption = self.model.cls_embedding(text, None)[:, None]  # (I, 1, L, D)
        if layout.branches == 2:
            everywhere = torch.ones(len(text), dtype=torch.bool, device=text.device)
            caption = torch.cat([caption, self.model.cls_embedding(text, everywhere)[:, None]], dim=1)
        n, end = self.cfg.source_tokens, self.cfg.prefix_tokens
        self._read_image(self._placed(image, 0), layout, cache)
        x = self._placed(caption.flatten(0, 1).type_as(image), n)  # (I * C, L, D)
        if self.zero_text.all():
            return self.logits(self._read_averaging(x, layout, cache))
        mask = causal_mask(x.shape[1], 0, x)
        for index, block in enumerate(self.blocks):
            q, k, v = block.project(x, self.rope[n:end], layout.images)
            cache.store_text(index, k, v)
            x = block.finish(x, attend(q, [cache.image[index], KVSegment(k, v)], mask))
        return self.logits(x[:, -1])

    def _read_averaging(self, x: torch.Tensor, layout: BatchLayout, cache: SharedCache) -> torch.Tensor:
        """Text x (I * C, L, D) under a zero rotary row (the official layout) -> its last position, (I * C, D).

        Zero queries give every position before them the same weight, so attention is the running mean of the
        values: no query, no key, no scores.
        """
        counts = torch.arange(x.shape[1], device=x.device, dtype=torch.float32) + 1 + self.cfg.source_tokens
        for index, block in enumerate(self.blocks):
            v = block.values(x, layout.images)  # (P, L, hd)
            cache.store_text(index, torch.zeros_like(v), v)
            image = cache.image[index].values.float().sum(1, keepdim=True)  # (I * Hkv, 1, hd)
            image = image.repeat_interleave(len(v) // len(image), dim=0)
            mean = ((image + v.float().cumsum(1)) / counts[:, None]).type_as(v)
            if block is self.blocks[-1]:
                x, mean = x[:, -1:], mean[:, -1:]  # nothing else is read
            x = block.finish(x, block.expand_heads(mean, layout.images))
        return x[:, -1]

    def _read_image(self, x: torch.Tensor, layout: BatchLayout, cache: SharedCache) -> None:
        """Fill the image segment; x (I, K N, D)."""
        for index, block in enumerate(self.blocks):
            q, k, v = block.project(x, self.rope[: x.shape[1]], layout.images)
            segment = cache.image[index]
            segment.keys.copy_(k)
            segment.values.copy_(v)
            if block is self.blocks[-1]:
                return  # nothing reads the last block's image rows
            shape = (layout.images, block.kv_heads, 1, 1, *k.shape[1:])
            k, v = (t.view(shape).expand_as(q).flatten(1, 3) for t in (k, v))
            out = F.scaled_dot_product_attention(q.flatten(1, 3), k, v, is_causal=True, scale=1.0)
            x = block.finish(x, out.view(q.shape))

    def step(
        self,
        codes: torch.Tensor,
        positions: torch.Tensor,
        drawn: int,
        length: int,
        masked: bool,
        layout: BatchLayout,
        cache: SharedCache,
        block_step: BlockStep,
    ) -> torch.Tensor:
        """Read target codes (R, W) at `positions`, (R, W) int64, ascending by one in each row -> logits of the code
        after each of the last `drawn` of them, (R, drawn, V) float32.

        Rows stand at positions of their own. `length` target positions are looked at, none of them after a
        code's own; without `masked` W is 1 and every row stands at length - 1. `block_step` is `FastBlock.step` or
        its compiled form.
        """
        rows, width = codes.shape
        place = self.cfg.prefix_tokens + positions
        x = self.model.tok_embeddings(codes)  # (R, W, D)
        if self.pos_embeddings is not None:
            x = x + self.pos_embeddings[place]
        rope = self.rope[place.flatten()]
        of_row = positions.view(layout.images, 1, -1, width)  # (I, 1, C * M, W)
        heads = self.blocks[0].kv_heads
        slots = of_row.expand(-1, heads, -1, -1).reshape(rows * heads, width)
        slots = (slots + torch.arange(rows * heads, device=x.device)[:, None] * self.cfg.image_tokens).flatten()
        mask = None
        if masked:
            hidden = torch.arange(length, device=x.device) > of_row[:, :, :, None, :, None]
            mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        for index, block in enumerate(self.blocks):
            prefix = [cache.image[index], cache.text[index]]
            target = KVSegment(*(t.flatten(0, 1) for t in (cache.target[index].keys, cache.target[index].values)))
            x = block_step(block, x, rope, layout.images, prefix, target, slots, length, mask)
        return self.logits(x[:, width - drawn :])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.model.norm(hidden)).float()


def causal_mask(queries: int, start: int, like: torch.Tensor) -> torch.Tensor:
    """(queries, start + queries), 0 where query i may see position j <= start + i, -inf elsewhere."""
    mask = torch.full((queries, start + queries), -torch.inf, device=like.device, dtype=like.dtype)
    return mask.triu(start + 1)
