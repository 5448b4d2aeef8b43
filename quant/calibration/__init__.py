"""Calibration: statistics of the inputs of a model's layers, recorded while the model runs, and their file."""
