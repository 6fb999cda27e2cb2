"""Tables and charts of the benchmarks' reports."""
