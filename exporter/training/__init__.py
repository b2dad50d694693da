"""Trains the bundled model: art, maps, the views of them, and the loop.

`art`, `mapart` and `scenes` need NumPy and Pillow only and serve the demo and the benchmarks as
well; everything else needs the exporter's extra.
"""
