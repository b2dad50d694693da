"""Trains the bundled model: art, maps, the views of them, and the loop.

`art`, `mapart` and `scenes` need NumPy and Pillow only and serve the demo and the benchmarks as
well; `views`, `stream`, `model`, `losses`, `validate`, `tasks` and `train` need the exporter's extra.
"""
