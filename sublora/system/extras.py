"""Which extra of the package brings what a light installation lacks."""

EXTRAS = {
    "train": ("datasets", "huggingface_hub", "pandas", "pyarrow", "safetensors", "tiktoken", "torch"),
    "workflow": ("docutils", "jinja2", "markupsafe", "matplotlib", "mpl_toolkits", "scipy", "seaborn", "snakemake"),
    "hf": ("accelerate", "gguf", "tokenizers", "transformers"),
    "duplicates": ("datasketch",),
    "tracking": ("tensorboardX",),
}
"""Extra to the modules that it brings."""


def missing_extra(error: ImportError, wanted: str) -> str | None:
    """The line that says what to install where `wanted` cannot be imported; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"{wanted} needs {module}, which is not installed: pip install 'sublora[{extra}]'"
    return None
