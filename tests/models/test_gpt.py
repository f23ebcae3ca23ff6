"""The transformer: its three ways agree, conditions drop as told, positions mean what they say."""

from __future__ import annotations

import pytest
import torch

from editar.config import GPTConfig
from editar.models.gpt import GPT, KVCache
from editar.models.rope import apply_rope, grid_positions, rope_table
from tests.helpers.tiny_gpt import ROPES, config, model


def inputs(cfg: GPTConfig, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source, target = (torch.randint(cfg.vocab_size, (batch, n)) for n in (cfg.source_tokens, cfg.image_tokens))
    return source, torch.randn(batch, cfg.text_tokens, cfg.text_dim), target


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(("kv_heads", "images"), [(None, 1), (2, 1), (None, 3)])
def test_prefill_and_decode_equal_forward(rope: str, kv_heads: int | None, images: int) -> None:
    cfg = config(ROPES[rope], n_kv_head=kv_heads, images=images)
    gpt = model(cfg)
    source, text, target = inputs(cfg)
    expected = gpt(source, text, target).logits
    cache = KVCache(cfg, 2, torch.device("cpu"), torch.float32)
    steps = [gpt.prefill(source, text, cache)]
    steps += [gpt.decode(target[:, j], j, cache) for j in range(cfg.image_tokens - 1)]
    torch.testing.assert_close(torch.stack(steps, 1), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
def test_nothing_looks_ahead(rope: str) -> None:
    cfg = config(ROPES[rope])
    gpt = model(cfg)
    source, text, target = inputs(cfg)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % cfg.vocab_size
    a, b = gpt(source, text, target).logits, gpt(source, text, changed).logits
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_train_and_eval_mode_agree_without_dropout() -> None:
    cfg = config()
    gpt = model(cfg)
    batch = inputs(cfg)
    torch.testing.assert_close(gpt.train()(*batch).logits, gpt.eval()(*batch).logits)


def test_dropped_conditions_no_longer_matter() -> None:
    cfg = config()
    gpt = model(cfg)
    source, text, target = inputs(cfg)
    other_source, other_text, _ = inputs(cfg)
    drop = torch.tensor([True, False])

    def logits(
        s: torch.Tensor, t: torch.Tensor, image: torch.Tensor | None, words: torch.Tensor | None
    ) -> torch.Tensor:
        return gpt(s, t, target, image, words).logits

    a, b = logits(source, text, drop, None), logits(other_source, text, drop, None)
    assert torch.equal(a[0], b[0])
    assert not torch.allclose(a[1], b[1])
    a, b = logits(source, text, None, drop), logits(source, other_text, None, drop)
    assert torch.equal(a[0], b[0])
    assert not torch.allclose(a[1], b[1])


@pytest.mark.parametrize("rope", ROPES)
def test_further_images_leave_the_first_ones_places(rope: str) -> None:
    """[image 1 | image 2 | text | target]: one image's rotary rows and learned positions stay as they were."""
    one, two = config(ROPES[rope]), config(ROPES[rope], images=2)
    n, length = one.image_tokens, one.text_tokens
    kept = [*range(n), *range(2 * n, 3 * n + length)]
    assert torch.equal(rope_table(two)[kept], rope_table(one))
    rows, columns, is_text = grid_positions(two)
    assert not is_text[: 2 * n].any()
    if ROPES[rope].layout == "quadrants":
        places = set(zip(rows[~is_text].tolist(), columns[~is_text].tolist(), strict=True))
        assert len(places) >= 3 * n - 1  # a target row that predicts may share one place
    first, second = model(one), model(two)
    shared = {key: value for key, value in first.state_dict().items() if key != "pos_embeddings.segment.weight"}
    second.load_state_dict(shared, strict=False)
    if ROPES[rope].learned:
        with torch.no_grad():
            second.pos_embeddings.segment.weight[:3] = first.pos_embeddings.segment.weight
        table = second.pos_embeddings(0, two.sequence_tokens)
        assert torch.equal(table[kept], first.pos_embeddings(0, one.sequence_tokens))
        assert not torch.equal(table[n : 2 * n], table[:n])


def test_each_image_is_dropped_by_itself() -> None:
    cfg = config(images=2)
    gpt = model(cfg)
    source, text, target = inputs(cfg)
    changed = source.clone()
    changed[:, cfg.image_tokens :] = (changed[:, cfg.image_tokens :] + 1) % cfg.vocab_size
    second = torch.tensor([[False, True], [False, False]])
    a, b = (gpt(codes, text, target, second).logits for codes in (source, changed))
    assert torch.equal(a[0], b[0]) and not torch.allclose(a[1], b[1])
    both = torch.tensor([True, False])  # one flag drops all images
    assert torch.equal(
        gpt(source, text, target, both).logits, gpt(source, text, target, both[:, None].repeat(1, 2)).logits
    )


def test_null_tables_are_buffers_no_optimiser_sees() -> None:
    gpt = GPT(config())
    tables = {"img_uncond_embedding", "cls_embedding.uncond_embedding"}
    assert tables <= dict(gpt.named_buffers()).keys()
    assert tables <= gpt.state_dict().keys()
    assert not tables & dict(gpt.named_parameters()).keys()


def test_official_layout() -> None:
    """EditAR: source top-left, target bottom-right of a doubled grid, text rows all zero."""
    cfg = config()
    rows, columns, is_text = grid_positions(cfg)
    n, g = cfg.image_tokens, cfg.grid
    assert rows[:n].tolist() == [i // g for i in range(n)]
    assert columns[-n:].tolist() == [i % g + g for i in range(n)]
    table = rope_table(cfg)
    assert table.shape == (2 * n + 5, cfg.head_dim // 2, 2)
    assert (table[is_text] == 0).all()
    assert is_text.sum() == 5


def test_identity_text_is_not_rotated() -> None:
    cfg = config(ROPES["identity"])
    x = torch.randn(1, cfg.sequence_tokens, 4, cfg.head_dim)
    turned = apply_rope(x, rope_table(cfg))
    n = cfg.image_tokens
    assert torch.equal(turned[:, n : n + 5], x[:, n : n + 5])


def test_shared_output_layout_puts_a_prediction_on_its_source() -> None:
    """The position that predicts target code j carries the place of source code j."""
    cfg = config(ROPES["shared"])
    rows, columns, _ = grid_positions(cfg)
    n = cfg.image_tokens
    predicting = slice(cfg.prefix_tokens - 1, cfg.prefix_tokens - 1 + n)
    assert torch.equal(rows[predicting], rows[:n])
    assert torch.equal(columns[predicting], columns[:n])


def test_zero_text_rows_are_averaged_not_selected() -> None:
    """With zero rows every text key gets weight exp(0): one layer's output cannot tell their order."""
    cfg = config(n_layer=1)
    gpt = model(cfg)
    source, text, target = inputs(cfg)
    torch.testing.assert_close(
        gpt(source, text, target).logits[:, 1:], gpt(source, text.flip(1), target).logits[:, 1:], atol=1e-5, rtol=1e-4
    )
    identity = model(config(ROPES["identity"], n_layer=1))
    assert not torch.allclose(
        identity(source, text, target).logits[:, :1], identity(source, text.flip(1), target).logits[:, :1], atol=1e-5
    )


@pytest.mark.parametrize(("grid", "teacher_grid", "expected"), [(3, None, 1), (4, None, 4), (4, 5, 25)])
def test_alignment_map(grid: int, teacher_grid: int | None, expected: int) -> None:
    cfg = config(grid=grid, teacher_grid=teacher_grid)
    features = GPT(cfg)(*inputs(cfg)).features
    assert features is not None
    assert features.shape == (2, expected, 7)


def test_no_teacher_no_alignment() -> None:
    cfg = config(teacher_dim=None)
    gpt = GPT(cfg)
    assert gpt(*inputs(cfg)).features is None
    assert not any(key.startswith("alignment") for key in gpt.state_dict())


def test_rope_table_stays_float32_in_a_half_model() -> None:
    cfg = config()
    gpt = GPT(cfg).to(torch.bfloat16)
    source, text, target = inputs(cfg)
    assert gpt(source, text.bfloat16(), target).logits.dtype == torch.float32
    assert torch.equal(gpt.rope(torch.device("cpu")), rope_table(cfg))
