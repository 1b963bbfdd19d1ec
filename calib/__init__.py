"""INT8 calibration of bundles. Nothing is here yet."""
