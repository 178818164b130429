"""results/report.html: the page, what the runs say on it, and the hypotheses in words."""
