"""Spherical K-means over more rows than memory holds, flat or in levels, alone or split over tasks."""
