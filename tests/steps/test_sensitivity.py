"""What a width costs by the curvature, against what it is found to cost."""

from __future__ import annotations

import pytest
import torch

from halfbyte import api
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.progress import Progress
from halfbyte.steps.mixed import _alike
from halfbyte.steps.rough_quantizers import RoughQuantizers
from halfbyte.steps.sensitivity import curvature, measured


@pytest.fixture
def session(tmp_path):
    (tmp_path / "s.yaml").write_text("name: s\nbits: {weight: 4, activation: 4}\nsteps: [mixed, rotate, adalog]\n")
    options = Options(model="fashion_vit", recipe=tmp_path / "s.yaml", calib_images=64, workers=0, limit=4)
    inputs = read_inputs(options, resolved_recipe(options), Progress(quiet=True))
    return api._session(inputs, options, Progress(quiet=True))


def test_curvature_tells_what_is_measured(session):
    sites = [site for site in session.layout.sites if site.name.startswith("blocks.1.")]
    estimated, found = curvature(session, sites, [4, 5], 32, 2), measured(session, sites, [4, 5], 32, 2)
    assert estimated.keys() == found.keys()
    total, expected = (sum(costs.values()) for costs in (estimated, found))
    torch.testing.assert_close(total, expected, rtol=0.35, atol=0)
    assert (total[0] > 2 * total[1]).all()


def test_behind_softmax_and_gelu_two_bits_do_not_cost_all(session):
    by_role = {site.role: site for site in session.layout.sites if site.name.startswith("blocks.1.")}
    for role, operand in (("pv", "left"), ("fc2", "input")):
        site, seen = by_role[role], []
        rough = RoughQuantizers(session, [site], [2, 3])
        handle = session.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, x, seen=seen: seen.extend(x)
        )
        with torch.no_grad():
            session.model(next(iter(session.images(4, 4))))
        handle.remove()
        x = seen[0]
        for bits, most in ((2, 0.25), (3, 0.08)):
            error = (rough.quantized(site, operand, x, bits) - x).square().mean() / x.square().mean()
            assert error < most, (role, bits, error)


def test_costs_of_a_role_fall_alike():
    widths, level = torch.arange(2.0, 9).double(), torch.tensor([1.0, 0.1, 5, 2]).double()
    clean = torch.cat([level[:3, None] * 4**-widths, level[3:, None] * 6**-widths])
    roles = ["fc1", "fc1", "fc1", "fc2"]
    torch.testing.assert_close(_alike(clean, roles), clean)
    noisy = clean * torch.linspace(-0.3, 0.3, 28).exp()[torch.randperm(28)].view(4, 7)
    smooth = _alike(noisy, roles)
    assert (smooth.log() - clean.log()).abs().mean() < (noisy.log() - clean.log()).abs().mean()
    assert (smooth.diff(dim=1) <= 0).all()
    # More bits never hurt, whatever was measured.
    assert (_alike(clean.flip(1), roles).diff(dim=1) <= 0).all()
