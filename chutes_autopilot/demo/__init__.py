"""A simulated Chutes, for the demo mode, the tests and the benchmarks; it never pretends to be the real one."""
