"""An OpenAI-compatible gateway for Chutes: picks a live model, streams its answer, fails over before the first byte."""

__version__ = "0.1.0"
