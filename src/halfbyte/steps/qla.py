"""QLA: small adapters beside the blocks, trained for a short while against the float model (Mohammadi et al., 2026)."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.families.places import Link, Place, places
from halfbyte.layers.adapters import Adapter
from halfbyte.layers.conv import QuantConv2d
from halfbyte.prepare import example_input, model_state, site_module
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session
from halfbyte.steps.adapter_training import AdapterTraining, Settings
from halfbyte.train.loop import Plan
from halfbyte.train.losses import LossWeights

NAME = "qla"
ATTENTION_KINDS = ("separable", "depthwise", "none")
MLP_KINDS = ("lowrank", "bottleneck", "affine", "none")
STARTS = ("alive", "published")
LIMITS = {
    "images": (8, 10**9), "attn_r": (1, 4096), "mlp_r": (1, 4096), "factor": (1, 10**6), "epochs": (1, 10**4),
    "batch_size": (0, 10**6), "accumulate": (1, 10**4), "lr": (0, 1), "temperature": (0, 100),
    "weight_decay": (-1, 10), "ce": (-1, 10**6), "kd": (-1, 10**6), "feature": (-1, 10**6),
}  # fmt: skip
_BLOCKS = re.compile(r"(?:(\d{1,4}):)?(\d{1,4})(?:-(\d{1,4}))?")


@dataclass(frozen=True)
class Published:
    """With what a family's adapters were trained."""

    weights: LossWeights
    lr: float
    weight_decay: float
    batch_size: int


PUBLISHED = {
    "vit": Published(LossWeights(1.0, 0.5, 2.0, 1e-3), 5e-4, 0.0, 16),
    "swin": Published(LossWeights(1.0, 0.5, 2.0), 5e-4, 0.0, 32),
    "resnet": Published(LossWeights(0.7, 0.2, 1.5), 3e-4, 1e-4, 32),
}


@dataclass(frozen=True)
class QLA:
    """Adapters beside attentions and MLPs, or beside the stages of a ResNet; the quantized model itself stays.

    images: calibration images, of which an eighth decides which epoch is kept (or that none is). blocks: which get
    adapters, by number, range or stage:block such as "5", "0-3", "1:0"; empty: all. attn_kind: `separable` (with
    `attn_r` channels), `depthwise` or `none`. mlp_kind: `lowrank` (of rank `mlp_r`, in integers on the codes of the
    MLP's own input), `bottleneck`, `affine` or `none`. start: `alive`, or `published`, from which the layers of
    `separable` and `bottleneck` but the last bias never learn. kernel_size, factor: of a stage's convolution, which
    has `factor` input channels a group. batch_size (of one step, in `accumulate` parts), lr, temperature: 0 takes the
    published ones of the family, as -1 does for weight_decay and for ce, kd and feature, the weights of cross entropy,
    distillation and features. labels: whether to use them, where they are classes of the model. cosine: let the rate
    fall to 0. autocast: compute in bfloat16 where torch deems it safe.

    BatchNorm keeps its statistics: that the published code re-estimates them as it trains is a matter of its own. So
    are its choice of the best epoch by the evaluation images and its second update a step of every gate.
    `paper_exact` restores layers and gradients: float32 adapters, their dead start, the class token through the gate.
    """

    calibrates: ClassVar[bool] = False
    images: int = 1000
    blocks: tuple[str, ...] = ()
    attn_kind: str = "separable"
    attn_r: int = 8
    mlp_kind: str = "lowrank"
    mlp_r: int = 8
    start: str = "alive"
    kernel_size: int = 1
    factor: int = 64
    epochs: int = 1
    batch_size: int = 0
    accumulate: int = 1
    lr: float = 0.0
    weight_decay: float = -1.0
    cosine: bool = False
    labels: bool = True
    ce: float = -1.0
    kd: float = -1.0
    temperature: float = 0.0
    feature: float = -1.0
    autocast: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("attn_kind", ATTENTION_KINDS), ("mlp_kind", MLP_KINDS), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}")
        if self.kernel_size not in (1, 3):
            raise ValueError("kernel_size must be 1 or 3")
        if self.attn_kind == self.mlp_kind == "none":
            raise ValueError("attn_kind and mlp_kind are both none; leave the step out")
        for entry in self.blocks:
            if not _BLOCKS.fullmatch(entry):
                raise ValueError(
                    f'blocks are numbers, ranges or stage:block, such as "0-3", "5" or "1:0", not {entry!r}'
                )

    def run(self, session: Session) -> dict[str, Any]:
        """Attach and train the adapters; the figures tell the loss on the held-out images at the start and behind each
        epoch."""
        found = self.check(session)
        training = AdapterTraining(session, found, self._settings(session, found[0].family))
        for part in session.parts(training.parts(), "training adapters"):
            if part is None:
                attach(self, session, chosen(found, self.blocks))
                training.start()
            else:
                training.run(part)
        return training.finish()

    def check(self, session: Session) -> list[Place]:
        """The places for adapters in the model; raises `HalfbyteError` where it has none, or not those asked for."""
        found = places(session.model)
        if not found:
            raise HalfbyteError(
                "qla knows where adapters go in a ViT, a Swin or a ResNet, and this model is none of them"
            )
        chosen(found, self.blocks)
        return found

    def _settings(self, session: Session, family: str) -> Settings:
        published = PUBLISHED[family]
        own = published.weights
        weights = LossWeights(
            own.ce if self.ce < 0 else self.ce, own.kd if self.kd < 0 else self.kd,
            self.temperature or own.temperature, own.feature if self.feature < 0 else self.feature,
        )  # fmt: skip
        labels = self.labels and _labelled(session)
        if not (weights.kd or weights.feature or (labels and weights.ce)):
            raise HalfbyteError("qla has nothing to train by: kd and feature are 0, and there are no labels or ce is 0")
        plan = Plan(
            epochs=self.epochs, batch_size=self.batch_size or published.batch_size, rate=self.lr or published.lr,
            weight_decay=published.weight_decay if self.weight_decay < 0 else self.weight_decay, cosine=self.cosine,
            accumulate=self.accumulate, autocast=self.autocast,
        )  # fmt: skip
        return Settings(self.images, weights, labels, plan)


def chosen(found: list[Place], blocks: tuple[str, ...]) -> list[Place]:
    """The places that `blocks` name, all where it names none; raises `HalfbyteError` for one that does not exist."""
    if not blocks:
        return found
    picked: set[int] = set()
    for entry in blocks:
        match = _BLOCKS.fullmatch(entry)
        assert match is not None
        stage, first, last = (None if number is None else int(number) for number in match.groups())
        assert first is not None
        numbers = range(first, (first if last is None else last) + 1)
        known = {number: number for number in range(len(found))}
        if stage is not None:
            known = {place.index: number for number, place in enumerate(found) if place.stage == stage}
        if not numbers or not all(number in known for number in numbers):
            raise HalfbyteError(f"qla.blocks: the model has no blocks {entry!r}; it has {_named(found)}")
        picked.update(known[number] for number in numbers)
    return [found[number] for number in sorted(picked)]


@torch.no_grad()
def attach(step: QLA, session: Session, where: list[Place]) -> None:
    """Put adapters at these places, with the parameters from which they are trained."""
    shapes = _shapes(session.model, [link for place in where for link in place.links])
    for place in where:
        for link in place.links:
            made = _described(step, session, link, *shapes[link])
            if made is None:
                continue
            kind, options = made
            options["form"] = "float32" if session.recipe.paper_exact else "int8"
            session.edit(
                "add_adapter", block=place.block, at=link.at, source=link.source, side=link.side, child=NAME, kind=kind,
                options=options,
            )  # fmt: skip
            adapter = cast(Adapter, session.model.get_submodule(f"{link.at}.{NAME}"))
            _set_quantizers(session, link, adapter)
            adapter.start(session.generator, dead=session.recipe.paper_exact or step.start == "published")


def _described(
    step: QLA, session: Session, link: Link, before: torch.Size, behind: torch.Size
) -> tuple[str, dict[str, Any]] | None:
    """Kind and options of the adapter at a link whose source gives, and whose target gave, tensors of these shapes."""
    if link.part == "stage":
        stride = -(-before[2] // behind[2])
        # As many groups as `factor` asks for, or the next fewer into which both numbers of channels divide.
        most = max(1, before[1] // step.factor)
        groups = max(g for g in range(1, most + 1) if before[1] % g == behind[1] % g == 0)
        return "stage", {"inputs": before[1], "outputs": behind[1], "kernel": step.kernel_size, "stride": stride,
                         "groups": groups}  # fmt: skip
    kind, channels = step.attn_kind if link.part == "attention" else step.mlp_kind, before[-1]
    if kind == "none":
        return None
    if link.part == "mlp":
        options: dict[str, Any] = {"channels": channels} | ({} if kind == "affine" else {"rank": step.mlp_r})
        if kind == "lowrank":
            options["shared_input"] = bool(_fed(session, link)) and not session.recipe.paper_exact
        return kind, options
    prefix = 0 if len(before) == 4 else int(getattr(session.model, "num_prefix_tokens", 0))
    grid = [] if len(before) == 4 else _grid(session.model, before[1] - prefix, link)
    return kind, {"channels": channels, "rank": 0 if kind == "depthwise" else step.attn_r, "prefix": prefix,
                  "grid": grid, "shared_gate": session.recipe.paper_exact}  # fmt: skip


def _grid(model: nn.Module, tokens: int, link: Link) -> list[int]:
    """Height and width of the grid on which so many tokens lie."""
    known = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if known is not None and math.prod(known) == tokens:
        return [int(size) for size in known]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise HalfbyteError(f"{link.at}: {tokens} tokens lie on no square grid; set qla.attn_kind=none")
    return [side, side]


def _set_quantizers(session: Session, link: Link, adapter: Adapter) -> None:
    """8 bits, or what the recipe says of the role `side`; what reads another site's codes has its input's quantizer."""
    for site in session.layout.sites:
        if not site.name.startswith(f"{link.at}.{NAME}."):
            continue
        module, (weight, activation) = site_module(session.model, site.name), session.bits.of(site)
        module.set_quantizer("weight", UniformQuantizer(weight, axis=0, symmetric=True))
        quantizer: Quantizer = UniformQuantizer(activation, covers_zero=isinstance(module, QuantConv2d))
        if module in adapter.reads_codes:
            quantizer = copy.deepcopy(site_module(session.model, _fed(session, link)[0]).quantizer("input"))
        module.set_quantizer("input", quantizer.to(session.device))


def _fed(session: Session, link: Link) -> list[str]:
    """The sites whose input is the output of the norm that a link reads."""
    return [site.name for site in session.layout.sites if site.norm == link.source and site.role != "side"]


def _shapes(model: nn.Module, links: list[Link]) -> dict[Link, tuple[torch.Size, torch.Size]]:
    """What each link's source takes or gives, and what its target gives, for one image."""
    found: dict[tuple[str, str], torch.Size] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name, "input"], found[name, "output"] = inputs[0].shape, output.shape

        return hook

    names = {name for link in links for name in (link.source, link.at)}
    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        with model_state(model, "float"):
            model(example_input(model))
    finally:
        for handle in hooks:
            handle.remove()
    return {link: (found[link.source, link.side], found[link.at, "output"]) for link in links}


def _labelled(session: Session) -> bool:
    """Whether the calibration images' labels are classes of the model."""
    try:
        session.calibration.check_classes(int(cast(int, session.model.num_classes)))
    except HalfbyteError:
        return False
    return True


def _named(found: list[Place]) -> str:
    stages: dict[int, list[int]] = {}
    for place in found:
        if place.stage is not None:
            stages.setdefault(place.stage, []).append(place.index)
    by_stage = "".join(f", {stage}:{min(own)}-{max(own)}" for stage, own in stages.items())
    return f"0-{len(found) - 1}" + by_stage
