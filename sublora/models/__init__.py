"""Networks with a vector theta as their parameters: GPT-2 with LoRA adapters, and the interface that training needs."""
