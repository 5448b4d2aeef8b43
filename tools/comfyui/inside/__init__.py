"""Modules for ComfyUI's interpreter: the runner of `Host.call`, and helpers for the functions that it calls."""
