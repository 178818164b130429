"""A vector w of d numbers, and the many parameters theta it stands for. Knows neither networks nor LoRA."""
