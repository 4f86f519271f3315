"""Benchmarks of cvkernels: workloads of real detectors, timed beside their peers in one process."""
