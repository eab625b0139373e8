"""The benchmarks that models are judged by, and the protocols they are asked in."""
