"""Running a quantized model on its integers. Needs neither torch nor timm."""
