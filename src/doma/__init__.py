"""DOMA: data organisation, management and access for High-Energy Physics."""

__version__ = "0.1.0"
