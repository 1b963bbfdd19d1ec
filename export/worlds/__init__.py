"""Procedural worlds: data to train and test on, with exact truth."""

from __future__ import annotations

from edge4d.export.worlds.world_folder import WORLDS, write_world

__all__ = ["WORLDS", "write_world"]
