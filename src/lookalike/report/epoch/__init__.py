"""The report of an epoch: `results/report.html`."""
