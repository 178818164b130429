"""From text to token files, and from token files to documents."""
