"""A job's batch script: it starts attempts, watches them, judges how they ended, and decides what is next."""
