"""What the stream hands to a block is what the model does, in as few passes as can be, on however many processes."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from halfbyte import api
from halfbyte.block_stream import HELD_OUT, BlockStream
from halfbyte.distributed import World
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.prepare import model_state
from halfbyte.progress import Progress
from halfbyte.session import Session
from halfbyte.steps import qwt
from halfbyte.steps.catalog import resolve
from halfbyte.steps.qwt import QwT

IMAGES = 17


@pytest.fixture
def calibrated(tmp_path):
    """The session of an embedded model at W3A3 whose ranges are set."""

    def make(model: str, world: World | None = None, paper_exact: bool = False) -> Session:
        text = "name: ranges\nbits: {weight: 3, activation: 3}\nsteps: [{minmax: {images: 8}}]\n"
        file = tmp_path / f"ranges{0 if world is None else world.rank}.yaml"
        file.write_text(text + f"paper_exact: {str(paper_exact).lower()}\n")
        options = Options(model=model, recipe=file, calib_images=32, workers=0, limit=1, batch_size=8)
        quiet, recipe = Progress(quiet=True), resolved_recipe(options)
        session = api._session(read_inputs(options, recipe, quiet), options, quiet, world)
        for name, step in resolve(recipe):
            session.run(name, step)
        return session

    return make


def inputs_of(session: Session, model: nn.Module, name: str, batch_size: int) -> list[Tensor]:
    """What reaches a module when the whole model runs."""
    kept: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].clone()))
    with torch.no_grad():
        for batch in session.own_images(IMAGES, batch_size):
            model(batch)
    hook.remove()
    return kept


STEPS = {
    "lowrank": QwT(images=IMAGES),
    "float16": QwT(images=IMAGES, form="float16"),
    "early": QwT(images=IMAGES, form="int8", place="before_activation"),
    "stream": QwT(images=IMAGES, target="stream", form="int8"),
    "late": QwT(images=IMAGES, start_block=2),
}
CASES = [
    ("fashion_vit", "lowrank"), ("fashion_vit", "stream"), ("fashion_swin", "float16"), ("fashion_swin", "late"),
    ("fashion_resnet", "lowrank"), ("fashion_resnet", "early"), ("fashion_resnet", "stream"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "name"), CASES)
def test_a_block_gets_what_the_quantized_model_gives_it(calibrated, monkeypatch, model: str, name: str) -> None:
    session, step, seen = calibrated(model), STEPS[name], []

    class Checked(qwt._Fitting):
        def run(self):
            stream, block = self.stream, self.unit.block.name
            with model_state(session.model, "quantized"):
                expected = inputs_of(session, session.model, block, stream.batch_size)
            assert len(expected) == len(stream.inputs)
            assert all(torch.equal(stream.inputs[number], batch) for number, batch in enumerate(expected))
            if stream.both:
                exact = inputs_of(session, session.teacher, block, stream.batch_size)
                assert all(torch.equal(stream.float_inputs[number], batch) for number, batch in enumerate(exact))
            figures = super().run()
            seen.append(figures["kept"])
            return figures

    monkeypatch.setattr(qwt, "_Fitting", Checked)
    step.run(session)
    assert len(seen) >= 3
    assert sum(seen) >= 2


def test_what_was_published_hands_on_float32(calibrated, monkeypatch) -> None:
    """Also to a run that continues, which makes the inputs from the start."""
    session = calibrated("fashion_vit", paper_exact=True)
    QwT(images=IMAGES).run(session)
    stream = BlockStream(session, IMAGES, halves="observe")
    others = BlockStream(session, IMAGES, halves="observe")
    list(stream.visit([stream.units[0]]))
    for unit in stream.units[1:]:
        stream.advance()
        (_,) = others.visit([others.units[stream.units.index(unit)]])
        others._at = None
        assert all(torch.equal(stream.inputs[number], others.inputs[number]) for number in stream.numbers())


@contextmanager
def counted(model: nn.Module, names: list[str]):
    """How often modules run."""
    calls: Counter[str] = Counter()
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name])) for name in names
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(("model", "target"), [("fashion_vit", "local"), ("fashion_resnet", "stream")])
def test_two_passes_a_block(calibrated, model: str, target: str) -> None:
    session = calibrated(model)
    names = [unit.block.name for unit in BlockStream(session, IMAGES).units]
    with counted(session.model, names) as quantized, counted(session.teacher, names) as exact:
        QwT(images=IMAGES, target=target).run(session)
    batches = -(-IMAGES // 2)
    # One more finds out in which order the blocks run.
    assert quantized == dict.fromkeys(names, batches + 1)
    assert exact == dict.fromkeys(names, batches)


# Batches


class Fixed(World):
    """A world whose other processes are not asked."""


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_eighth_batch_decides(calibrated, size: int) -> None:
    session = calibrated("fashion_resnet")
    found: dict[int, list[tuple[bool, int]]] = {}
    for rank in range(size):
        session.world = Fixed(rank, size)
        stream = BlockStream(session, IMAGES)
        list(stream.visit([stream.units[0]]))
        found[rank] = [(stream.held_out(number), len(stream.inputs[number])) for number in stream.numbers()]
    ordered = [found[rank][turn] for turn in range(9) for rank in range(size) if turn < len(found[rank])]
    assert ordered == [(number % HELD_OUT == HELD_OUT - 1, 2 if number < 8 else 1) for number in range(9)]


def test_the_least_images_still_decide(calibrated) -> None:
    session = calibrated("fashion_resnet")
    stream = BlockStream(session, 8)
    list(stream.visit([stream.units[0]]))
    assert [stream.held_out(number) for number in stream.numbers()] == [False] * 7 + [True]


def test_three_processes_give_the_bits_of_one(calibrated, together) -> None:
    step = QwT(images=IMAGES, form="float16")

    def work(world: World) -> tuple[dict[str, Tensor], list[dict]]:
        session = calibrated("fashion_vit", world)
        figures = step.run(session)
        return session.model.state_dict(), figures["blocks"]

    ((wanted, figures),) = together(1, work)
    assert sum(entry["kept"] for entry in figures) > 2
    for state, others in together(3, work):
        assert others == figures
        assert state.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items() if tensor is not None)


# Models that are no chain


class Gapped(nn.Module):
    """A model of blocks between two of which something happens, and one of which runs twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__ = inner.__dict__
        self.inner = [inner]

    def forward(self, x: Tensor) -> Tensor:
        model = self.inner[0]
        x = model._pos_embed(model.patch_embed(x))
        for number, block in enumerate(model.blocks):
            x = block(x) * 1.5 if number == 2 else block(x)
        return model.forward_head(model.norm(model.blocks[-1](x)))


def test_a_gap_is_crossed_by_running_the_model(calibrated, monkeypatch) -> None:
    session = calibrated("fashion_vit")
    session.model, session.teacher = Gapped(session.model), Gapped(session.teacher)
    names = [block.name for block in session.layout.blocks if block.name.startswith("blocks.")]
    stream = BlockStream(session, IMAGES, both=True)
    # The last block runs twice: no unit.
    assert [unit.block.name for unit in stream.units] == names[:-1]
    assert [unit.chained for unit in stream.units] == [number not in (0, 3) for number in range(len(names) - 1)]
    for unit in stream.visit(stream.units):
        with model_state(session.model, "quantized"):
            expected = inputs_of(session, session.model, unit.block.name, stream.batch_size)
        exact = inputs_of(session, session.teacher, unit.block.name, stream.batch_size)
        for number in stream.numbers():
            assert torch.equal(stream.inputs[number], expected[number])
            assert torch.equal(stream.float_inputs[number], exact[number])


def test_units_that_are_passed_over(calibrated) -> None:
    session = calibrated("fashion_vit")
    stream = BlockStream(session, IMAGES)
    for unit in stream.visit([stream.units[1], stream.units[4]]):
        with model_state(session.model, "quantized"):
            expected = inputs_of(session, session.model, unit.block.name, stream.batch_size)
        assert all(torch.equal(stream.inputs[number], batch) for number, batch in enumerate(expected))
