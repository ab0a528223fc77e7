"""``python -m pipeline.cli``: the command ``agit`` where it is not installed."""

from pipeline.cli.start import main

main()
