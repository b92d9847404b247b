"""The parts of `examples/gpu_report.py`."""
