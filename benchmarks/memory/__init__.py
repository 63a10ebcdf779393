"""Whether memory is predicted, kept to, and paid for with no more steps than it has to be.

Nothing is imported here: `benchmarks.memory.process` measures what an import costs.
"""
