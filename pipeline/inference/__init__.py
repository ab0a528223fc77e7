"""``agit translate``: :func:`pipeline.inference.translate.translate` and what it reads, writes and spreads."""
