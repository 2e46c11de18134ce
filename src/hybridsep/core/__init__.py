"""What every room uses: errors, devices, files, provenance, processes, profiles."""
