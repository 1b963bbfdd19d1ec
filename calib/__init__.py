"""INT8 variants of bundles: ranges, Q/DQ graphs, and the layers that keep the picture. Start at `calibrate`."""
