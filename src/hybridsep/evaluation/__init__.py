"""How separations are scored and compared."""
