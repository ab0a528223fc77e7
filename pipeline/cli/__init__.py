"""The command ``agit``: one module per family of commands; :mod:`pipeline.cli.main` puts them together."""
