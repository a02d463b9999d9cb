"""Running a quantized model on its integers. Needs neither torch nor timm."""

from halfbyte.runtime.engine import Engine

__all__ = ["Engine"]
