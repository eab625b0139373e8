"""Training: the plan, the stages, the loop, checkpoints, and the worker that torchrun starts."""
