"""What is fast, measured: `python -m benchmarks` runs everything against plain references in one run.

The parts are training, evaluation, coding, data and workflow. Of them only data and workflow need more than torch,
numpy, tiktoken, pydantic, pyyaml, rich, typer and constriction, and none needs the package to be installed.
The other scripts in this folder are measurements of their own, described in docs/.
"""
