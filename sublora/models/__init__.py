"""Networks whose parameters are a vector theta: GPT-2 with LoRA adapters, and what training and scoring need of one."""
