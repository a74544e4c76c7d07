"""Models over several devices, as a notebook holds them: `pool.load`, generate, stream, serve."""
