"""Benchmarks: `python -m benchmarks` lists them.

Every benchmark prints a table and writes, into one directory, a JSON file with the versions, the device and every
sample, and a picture drawn from that file. What they share is in `shared/`.
"""
