"""The claims of Hu 2024 (arXiv 2402.15141), each as an experiment with a number and a picture.

Every part has ``measure(quick, say)``, which returns a record of plain values with the bounds that it
checks; `benchmarks.paper.figures` draws the records, `benchmarks.paper.page` writes docs/paper.md.
"""
