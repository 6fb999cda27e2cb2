"""What people read of a run: the HTML report, the evaluation report, charts and galleries."""
