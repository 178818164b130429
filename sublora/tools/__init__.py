"""Commands beside the pipeline: plan, certify, classify, export, generate, duplicates, status."""
