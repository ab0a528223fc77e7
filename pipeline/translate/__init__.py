"""``agit translate``: :func:`pipeline.translate.run.translate` and what it reads, writes and spreads."""
