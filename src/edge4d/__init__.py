"""edge4d: feed-forward 4D Gaussian scenes from a photograph, on the machine in front of you."""

from __future__ import annotations

__version__ = "0.1.0"
