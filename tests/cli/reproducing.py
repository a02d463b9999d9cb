"""A table of embedded models as `halfbyte reproduce` reads it."""

TABLE = """
title: Embedded models
source: a paper
measured: something else
recipes: [percentile]
models:
  resnet: {checkpoint: fashion_resnet, top1: 91.3, note: trained here}
  own: {checkpoint: cifar_resnet20, top1: 80}
rows:
  - {model: resnet, bits: w8a8, top1: 91.0}
  - {model: resnet, bits: w4a4, top1: 85.5}
  - {model: resnet, bits: w4a8, top1: 90, recipes: [minmax]}
"""
# What a row that cannot be run here adds to the table.
ROWS = {
    "long": "  - {model: resnet, bits: w3a3, top1: 1, recipes: [qla], long: a week, bounded_by: [qla.images]}\n",
    "labels": "  - {model: resnet, bits: w3a3, top1: 1, recipes: [vvtq], labels: a teacher's}\n",
    "images": "  - {model: resnet, bits: w3a3, top1: 1, recipes: [qla], settings: [qla.images=4000]}\n",
    "step": "  - {model: resnet, bits: w3a3, top1: 1, recipes: [rotated.yaml]}\n",
    "weights": "  - {model: own, bits: w4a4, top1: 70}\n",
}
RUNS = ("resnet-percentile-w8a8", "resnet-percentile-w4a4", "resnet-minmax-w4a8")
