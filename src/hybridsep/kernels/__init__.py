"""Inner loops. Each has one signature; the body depends on the device."""
