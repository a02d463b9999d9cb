"""What the steps of one run share, and the state from which a killed run continues."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from halfbyte.artifact import is_trained
from halfbyte.data.images import ImageSet, batches
from halfbyte.data.soft_labels import SoftLabels
from halfbyte.distributed import World
from halfbyte.edits import CHANGES_BASIS, Edit
from halfbyte.errors import HalfbyteError, InapplicableError
from halfbyte.families.layout import Layout
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.progress import Progress
from halfbyte.quantizers.kinds import build_quantizer
from halfbyte.recipe import BitPlan, Recipe, bit_plan

T = TypeVar("T")
STATE = "resume.safetensors"
_KEPT = "__kept__."


@dataclass(frozen=True)
class StepReport:
    """What a step did: its registered name, the seconds it took, and figures worth keeping (plain values)."""

    step: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


class Step(Protocol):
    """A method: a frozen dataclass of parameters with a `run`.

    `calibrates`: it chooses the quantizers' parameters from scratch, so it cannot follow `--from`. A step with a true
    attribute `prepares` changes the trained weights and comes before those that calibrate. One with a method
    `check(session)` raises there what can be known before the run has a folder.
    """

    calibrates: ClassVar[bool]

    def run(self, session: Session) -> dict[str, Any]:
        """Change the session's model; returns figures worth keeping."""


@dataclass
class Session:
    """One run: the prepared model and all that steps may use.

    `calibration` holds the images that the run may use, each `[C, H, W]`; `teacher` is the untouched float model, and
    `aligned` one whose tensors between modules can be compared with the model's: another one behind a rotation.
    `generator` is the only source of randomness. `folder` is where the state is saved from which a killed run
    continues; None: nowhere.
    """

    model: nn.Module
    teacher: nn.Module
    layout: Layout
    recipe: Recipe
    calibration: ImageSet
    device: torch.device
    generator: torch.Generator
    progress: Progress
    batch_size: int = 32
    workers: int = 0
    folder: Path | None = None
    # Images to train on (None: those for calibration), soft labels of them, another teacher than the float model, and
    # timm's configuration of the model's images.
    training: ImageSet | None = None
    soft_labels: SoftLabels | None = None
    guide: nn.Module | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=World)
    edits: list[Edit] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)
    # Figures of the parts of the step that runs now: they outlive a kill.
    notes: list[dict[str, Any]] = field(default_factory=list)
    # Tensors besides the model's of the step that runs now; they outlive a kill too.
    kept: dict[str, Tensor] = field(default_factory=dict)
    # Whoever writes down what happens: called with an event's name and its facts.
    recorders: list[Callable[..., None]] = field(default_factory=list)
    # The widths in force: the recipe's until a step gives sites others.
    bits: BitPlan = field(init=False)
    _aligned: nn.Module | None = None
    # Of the step that runs now: parts that are done, seconds that it took before the run was killed, its start.
    _parts: int = 0
    _spent: float = 0.0
    _start: float = 0.0

    def __post_init__(self) -> None:
        self.bits = self.recipe.bits

    def run(self, name: str, step: Step) -> StepReport:
        """Run a step under its registered name, or what is left of it; then save the state."""
        self._start = time.perf_counter() - self._spent
        try:
            figures = step.run(self)
        except InapplicableError as error:
            if name not in self.recipe.if_possible:
                raise
            figures = {"left_out": str(error)}
            # The remedy behind the reason is for recipes that do not name the step.
            reason = str(error).removeprefix(f"{name}: ").partition(";")[0]
            self.progress.say(f"{name} is left out, as the recipe says: {reason}")
        report = StepReport(name, round(time.perf_counter() - self._start, 3), figures)
        self.reports.append(report)
        self._parts, self._spent, self.notes, self.kept = 0, 0.0, [], {}
        self._save()
        return report

    def parts(self, items: Sequence[T], description: str, detail: Callable[[], str] | None = None) -> Iterator[T]:
        """Yield the parts of a step's work, with progress. The state is saved behind each: a run that was killed
        continues with the first part that was not finished."""
        left = items[self._parts :]
        for item in self.progress.track(left, description, len(left), detail):
            yield item
            self._parts += 1
            self._spent = time.perf_counter() - self._start
            self._save()

    def record(self, event: str, **facts: Any) -> None:
        """Tell all that follow the run what happened. A part that is repeated after a kill is told again."""
        for recorder in self.recorders:
            recorder(event, **facts)

    def _save(self) -> None:
        if self.folder is not None:
            self.save_state(self.folder)

    @property
    def aligned(self) -> nn.Module:
        """The float model with whose tensors, module by module, those of the model can be compared."""
        return self.teacher if self._aligned is None else self._aligned

    def edit(self, name: str, **arguments: Any) -> None:
        """Make a named change of structure and record it, so that a saved model can be rebuilt."""
        edit = Edit(name, arguments)
        self.layout = edit.apply(self.model, self.layout)
        self.edits.append(edit)
        if name in CHANGES_BASIS:
            self._aligned = copy.deepcopy(self.model)

    def images(self, count: int, batch_size: int | None = None) -> Iterator[Tensor]:
        """The first `count` calibration images in batches `[B, C, H, W]` on the device.

        Raises `HalfbyteError` where there are fewer.
        """
        if count > len(self.calibration):
            raise HalfbyteError(
                f"a step asks for {count} calibration images, the run has {len(self.calibration)}; "
                "give more with --calib-images or lower the step's `images`"
            )
        subset = self.calibration.subset(range(count))
        for images, _ in batches(subset, batch_size or self.batch_size, self.workers):
            yield images.to(self.device)

    def own_images(self, count: int, batch_size: int) -> Iterator[Tensor]:
        """Of the same batches those that fall to this process: all, or under torchrun every so-many-th."""
        starts = range(0, count, batch_size)[self.world.rank :: self.world.size]
        own = [number for start in starts for number in range(start, min(start + batch_size, count))]
        for images, _ in batches(self.calibration.subset(own), batch_size, self.workers):
            yield images.to(self.device)

    def save_state(self, folder: Path) -> None:
        """Write everything that the remaining steps need, so that the run can continue after the reports so far."""
        facts = {
            "recipe": self.recipe.as_dict(),
            "bits": self.bits.as_dict(),
            "edits": [asdict(edit) for edit in self.edits],
            "reports": [asdict(report) for report in self.reports],
            "parts": self._parts, "spent": self._spent, "notes": self.notes,
            "quantizers": {
                site.name: {operand: site_module(self.model, site.name).quantizer(operand).spec()
                            for operand in site.operands}
                for site in self.layout.sites
            },
        }  # fmt: skip
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        tensors |= {f"{_KEPT}{name}": tensor.detach().cpu().contiguous() for name, tensor in self.kept.items()}
        tensors["__generator__"] = self.generator.get_state()
        # A folder of its own: the library begins a file under a random name, which a kill would leave beside it.
        part = folder / f"{STATE}.part"
        try:
            _remove(part)
            part.mkdir()
            # One file: tensors and facts of two different steps can never meet.
            save_file(_unshared(tensors), part / STATE, metadata={"facts": json.dumps(facts)})
            os.replace(part / STATE, folder / STATE)
            part.rmdir()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise HalfbyteError(
                f"cannot save the run's state to {folder} ({error}); free some space, then continue with --resume"
            ) from None

    def restore_state(self, folder: Path) -> bool:
        """Continue from what `save_state` wrote, `reports` telling the steps that are done; false where nothing was
        saved.

        Raises `HalfbyteError` where the saved state belongs to another recipe or is damaged.
        """
        if not has_state(folder):
            return False
        try:
            with safe_open(folder / STATE, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            if facts["recipe"] != self.recipe.as_dict():
                raise HalfbyteError(
                    f"{folder} holds a run of another recipe; repeat its command, or start with --force"
                )
            self.bits = bit_plan(facts["bits"], str(folder))
            for plain in facts["edits"][len(self.edits) :]:  # a run that started from an artifact has its edits
                self.edit(plain["name"], **plain["arguments"])
            self.generator.set_state(tensors.pop("__generator__"))
            kept = [name for name in tensors if name.startswith(_KEPT)]
            self.kept = {name.removeprefix(_KEPT): tensors.pop(name) for name in kept}
            for name, specs in facts["quantizers"].items():
                module = site_module(self.model, name)
                for operand, spec in specs.items():
                    quantizer = build_quantizer(spec)
                    for buffer in list(quantizer._buffers):
                        setattr(quantizer, buffer, tensors.pop(f"{name}.{operand}_quantizer.{buffer}", None))
                    module.set_quantizer(operand, quantizer.to(self.device))
                if (
                    isinstance(module, WeightedSite)
                    and (codes := tensors.pop(f"{name}.weight_codes", None)) is not None
                ):
                    module.weight_codes = codes.to(self.device)
            for name in [name for name in tensors if is_trained(name)]:
                path, _, buffer = name.rpartition(".")
                setattr(self.model.get_submodule(path), buffer, tensors.pop(name).to(self.device))
            self.model.load_state_dict(tensors, strict=False)
            self.reports = [StepReport(**report) for report in facts["reports"]]
            self._parts, self._spent, self.notes = int(facts["parts"]), float(facts["spent"]), facts["notes"]
        except HalfbyteError:
            raise
        except Exception as error:
            raise HalfbyteError(f"{folder}: the saved state is damaged ({error}); start again with --force") from None
        return True


def has_state(folder: Path) -> bool:
    """Whether `save_state` wrote there."""
    return (folder / STATE).is_file()


def remove_state(folder: Path) -> None:
    """Delete what `save_state` wrote; a finished run does not need it."""
    for name in (STATE, f"{STATE}.part"):
        _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory, cloned: safetensors refuses them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result
