"""MiniSlakh: songs of bass and drums, composed and rendered on the spot."""
