"""The operands of one block, as they pass through the float model."""

from __future__ import annotations

import pytest
import torch

from halfbyte import api
from halfbyte.capture import BlockCapture, channel_rows
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.prepare import site_module
from halfbyte.progress import Progress


@pytest.fixture
def session():
    options = Options(model="fashion_vit", recipe="adalog", calib_images=32, batch_size=5, workers=0, limit=1)
    quiet = Progress(quiet=True)
    return api._session(read_inputs(options, resolved_recipe(options), quiet), options, quiet)


@torch.no_grad()
def test_operands_are_what_the_float_model_feeds_the_sites(session):
    block = session.layout.blocks[2]
    kept = BlockCapture(session, 12).operands(block)
    assert list(kept) == [site.name for site in block.sites]
    seen = {}
    for site in block.sites:
        module = site_module(session.model, site.name)
        module.register_forward_pre_hook(lambda _, inputs, name=site.name: seen.setdefault(name, []).append(inputs))
    for images in session.images(12):
        session.model(images)
    for site in block.sites:
        operands = [name for name in site.operands if name != "weight"]
        (joined,) = kept[site.name]
        assert list(joined) == operands
        for place, operand in enumerate(operands):
            expected = torch.cat([inputs[place] for inputs in seen[site.name]])
            # Norms are computed in float64 while operands are observed.
            assert torch.allclose(joined[operand], expected, atol=1e-5)


def test_a_pass_ends_with_the_block(session):
    capture = BlockCapture(session, 10)
    capture.operands(session.layout.blocks[1])
    called = []
    for site in session.layout.sites:
        module = site_module(session.model, site.name)
        module.register_forward_pre_hook(lambda *_, name=site.name: called.append(name))
    capture.operands(session.layout.blocks[1])
    blocks = {session.layout.site(name).block for name in called}
    assert blocks == {block.name for block in session.layout.blocks[:2]}


def test_a_site_that_runs_twice_has_the_operands_of_both_calls(session):
    forward = session.model.forward_features
    session.model.forward_features = lambda *inputs, **options: sum(forward(*inputs, **options) for _ in range(2))
    block = session.layout.blocks[1]
    twice = BlockCapture(session, 4).operands(block)
    session.model.forward_features = forward
    once = BlockCapture(session, 4).operands(block)
    for name, (operands,) in once.items():
        (both,) = twice[name]
        for operand, x in operands.items():
            assert torch.equal(both[operand], torch.cat((x, x)))


def test_calls_of_another_shape_have_operands_of_their_own(session):
    """The same patches in rows of two lengths, as where attention runs in groups of several sizes."""
    block = session.layout.blocks[1]
    once = BlockCapture(session, 4).operands(block)
    forward = session.model.patch_embed.forward
    whole = session.model.forward_features

    def twice(x, **options):
        whole(x, **options)
        session.model.patch_embed.forward = lambda x: forward(x)[:, :9]
        session.model.pos_embed.data, kept = session.model.pos_embed.data[:, :10], session.model.pos_embed.data
        try:
            return whole(x, **options)
        finally:
            session.model.patch_embed.forward, session.model.pos_embed.data = forward, kept

    session.model.forward_features = twice
    found = BlockCapture(session, 4).operands(block)
    for name, (operands,) in once.items():
        first, second = found[name]
        for operand, x in operands.items():
            assert torch.equal(first[operand], x)
            assert second[operand].shape != x.shape
            rows = channel_rows(found[name], operand)
            assert rows.numel() == x.numel() + second[operand].numel()
            assert rows.shape[-1] == (1 if x.shape[-1] != second[operand].shape[-1] else x.shape[-1])
