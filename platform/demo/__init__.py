"""The main job at the size of two CPU cores: real photographs in, a curated set and a trained, measured model out."""
