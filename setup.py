"""For tools that still ask for a setup.py: everything it would say stands in pyproject.toml."""

from setuptools import setup

setup()
