"""Scores as people read them, in reports, tables and model cards."""
