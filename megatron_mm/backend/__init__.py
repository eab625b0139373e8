"""Where megatron-core meets the machine: process groups, device, precision, and its layers' specs."""

from .distributed import backend_name, build_context, device, init_distributed, seed_everything, shutdown

__all__ = ["backend_name", "build_context", "device", "init_distributed", "seed_everything", "shutdown"]
