"""Searches: ``agit tune`` runs :mod:`pipeline.tune.stages`, whose job is :mod:`pipeline.tune.job`."""
