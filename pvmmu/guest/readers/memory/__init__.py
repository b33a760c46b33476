"""Memory traces of programs: lackey, Dinero, drmemtrace, CSV, and the compact form."""
