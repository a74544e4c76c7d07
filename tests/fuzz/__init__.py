"""Inputs of strangers by the million: no crash, no hang, memory bounded. ``make fuzz``; a slice of it is in the tests.

A surface makes inputs of valid ones and takes them as the package does. It raises what the package must not let happen;
`run` counts, times and measures. All that is random comes of one seed, so every failure can be had again.
"""
