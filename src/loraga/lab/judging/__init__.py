"""Answers rated by another model: MT-Bench, through any endpoint that speaks OpenAI's interface."""
