"""Benchmarks: how long the library takes, beside re-writings of how the published code of both methods does the same.

Every figure is a median over repeats with its smallest and largest value, measured in the same process and run as what it is compared with.
"""
