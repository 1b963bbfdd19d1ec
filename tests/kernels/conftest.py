"""Lets these tests import kernel_scenes.py beside them; nothing else lies in this folder that could be mistaken."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
