"""The report of a run, one HTML file: :mod:`pipeline.report.build` puts the chapters together."""
