"""What the benchmarks share: cases and who competes in them, how they are measured, and what a benchmark leaves."""
