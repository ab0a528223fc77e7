"""Scores of a model: :func:`pipeline.evaluate.scoring.evaluate`."""
