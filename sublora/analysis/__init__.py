"""From the records of all runs to tables, figures and tested hypotheses. Reads files only."""
