"""An ad server that learns from every click."""

__version__ = "0.1.0"
